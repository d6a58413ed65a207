"""What a new run finds in its folder."""

from bootmae.checkpoints.folders import claim_folder
from bootmae.checkpoints.run_identity import RunIdentity
from bootmae.checkpoints.write import write_checkpoint

NEW = RunIdentity(settings=dict(lr=1.0))


def test_everything_that_a_new_run_would_replace_is_moved_aside(tmp_path):
    meta = dict(epoch=1, iter=4, identity=RunIdentity(settings=dict(lr=2.0)).record())
    for name in ('epoch_1.pth', 'best_acc_epoch_1.pth'):
        write_checkpoint(tmp_path / name, dict(meta=meta, state_dict={}))
    (tmp_path / 'nonfinite').mkdir()
    for name in ('bad_images.txt', 'nonfinite/stopped_5.pth', 'last_checkpoint'):
        (tmp_path / name).write_text(f'the {name} of the old run')
    kept = tmp_path / 'bootmae_debug.py'
    kept.write_text('')
    assert claim_folder(tmp_path, NEW, move=True) == f'moved the files of an earlier run to {tmp_path / "earlier_1"}'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bootmae_debug.py', 'earlier_1']
    for name in ('bad_images.txt', 'nonfinite/stopped_5.pth', 'last_checkpoint'):
        assert (tmp_path / 'earlier_1' / name).read_text() == f'the {name} of the old run'
    assert (tmp_path / 'earlier_1' / 'epoch_1.pth').is_file()
    assert claim_folder(tmp_path, NEW, move=True) == ''


def test_records_of_a_run_that_saved_no_checkpoint_are_moved_aside(tmp_path):
    (tmp_path / 'bad_images.txt').write_text('a.jpg\tcut off\n')
    assert claim_folder(tmp_path, NEW) == ''
    claim_folder(tmp_path, NEW, move=True)
    assert [path.name for path in (tmp_path / 'earlier_1').iterdir()] == ['bad_images.txt']
    assert not (tmp_path / 'bad_images.txt').exists()
