"""The tables of docs/comparison.md: complete claims, each with its source."""

from pathlib import Path

import pytest

from pages.comparison import FILE, PROJECTS, TOPICS, UNKNOWN, makers, read_claims, sources, table

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {name: ('no', 'README') for name in PROJECTS}


def test_the_claims_of_the_page_are_complete():
    claims = read_claims(ROOT / FILE)
    assert all(len(claims[topic]) >= 3 for topic in TOPICS)
    page = (ROOT / 'docs' / 'comparison.md').read_text(encoding='utf-8')
    assert [name for name in makers(ROOT) if f'<!-- zoo: {name} -->' not in page] == []


def test_answers_are_shared_and_the_unknown_is_last():
    answers = ANSWERS | {'here': ('yes | tested', 'x'), 'mmpretrain': (UNKNOWN, ''), 'timm': ('yes', 'README')}
    last = table({'ONNX': answers}).splitlines()[-1]
    assert last == (
        '| **ONNX** | yes \\| tested | *MAE, the authors, lightly, lightly-train, stable-pretraining*: no<br>'
        '*timm*: yes<br>*mmpretrain*: not looked at |'
    )


def test_sources_of_this_repository_are_links():
    answers = ANSWERS | {'here': ('yes', 'docs/speed.md#reader, tools/knn.py'), 'mmpretrain': (UNKNOWN, '')}
    text = sources({'tasks': {'reading': answers}})
    assert text.startswith(
        '- **reading**: here: [docs/speed.md](speed.md#reader), [tools/knn.py](../tools/knn.py); MAE: '
    )
    assert 'mmpretrain' not in text


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('tasks,ONNX,timm,no,README', 'line 10: tasks, ONNX, timm is unknown or occurs twice'),
        ('tasks,ONNX,pytorch,no,README', 'pytorch is unknown'),
        ('speed,ONNX,timm,no,README', 'speed, ONNX, timm is unknown'),
        ('tasks,FSDP,timm,no,', 'give an answer and its source'),
        ('tasks,FSDP,timm,not looked at,README', 'without one'),
        ('tasks,FSDP,timm,no,README', 'FSDP has no answer for here, mmpretrain'),
    ],
)
def test_incomplete_claims_are_errors(tmp_path, line, message):
    file = tmp_path / 'comparison.csv'
    lines = [f'tasks,ONNX,{name},no,README' for name in PROJECTS]
    file.write_text('\n'.join(['topic,question,project,answer,source', *lines, line]))
    with pytest.raises(ValueError, match=message):
        read_claims(file)
