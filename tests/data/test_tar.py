"""Tar archives give the same images as the folder that was packed; messages about errors."""

import io
import os
import tarfile
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine import fileio
from PIL import Image
from torch.utils.data import DataLoader

from bootmae.commands.verify_sources import sources_of_path
from bootmae.data import findings, tar
from bootmae.data.file_checks import inspect_files
from bootmae.data.images import ImageFiles
from bootmae.data.samples import SeededSamples
from bootmae.data.tar import index_tar, read_tar_path, readable, split_tar_path, tar_path

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]


def pack(path, files: dict[str, bytes] | list[str], links: dict[str, str] | None = None, **kwargs) -> str:
    """Write a tar archive; files of a list of names contain their own names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', **kwargs) as archive:
        for name in files:
            data = files[name] if isinstance(files, dict) else name.encode('utf-8', 'surrogateescape')
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return str(path)


def picture(seed: int, kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def names(dataset) -> list[str]:
    return [readable(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]


def labeled(dataset) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(split_tar_path(info['img_path'])[1], info['gt_label']) for info in infos]


# Paths


@pytest.mark.parametrize(
    'archive, name',
    [
        ('/data/a.tar', 'n01/x.JPEG'),
        ('a b!/c!.tar', 'd!/e@1+2.jpg'),
        ('/100%.tar', '%21%3A%25.png'),
        ('x@1.tar', 'http://y/z.jpg'),
        ('/n\udcff.tar', 'näh/\udcff.jpg'),
    ],
)
def test_paths_survive_odd_names(archive, name):
    path = tar_path(archive, name, 512, 7)
    assert split_tar_path(path) == (archive, name, 512, 7)
    assert path.count('://') == 1  # mmengine splits there
    assert readable(path) == f'{archive}!/{name}'
    assert os.path.splitext(path)[1] == os.path.splitext(name)[1]


def test_other_paths_stay_as_they_are():
    assert readable('/data/a!/b.jpg') == '/data/a!/b.jpg'
    for wrong in ('/data/a.tar', 'tar://a.tar!/b.jpg', 'tar://1+2@a.tar'):
        with pytest.raises(ValueError, match='no path into a tar archive'):
            split_tar_path(wrong)


def test_every_reader_of_mmengine_reads_them(tmp_path):
    data = picture(0, 'PNG')
    archive = pack(tmp_path / 'a%!.tar', {'x/näh @1.png': data})
    ((name, place),) = index_tar(archive).items()
    path = tar_path(archive, name, *place)
    assert fileio.get(path) == data == read_tar_path(path)
    assert (mmcv.imread(path) == mmcv.imfrombytes(data)).all()


def test_few_archives_are_open_at_a_time(tmp_path, monkeypatch):
    paths = []
    for i in range(tar.OPEN_ARCHIVES + 9):
        archive = pack(tmp_path / f'{i}.tar', [f'{i}.jpg'])
        paths.append(tar_path(archive, f'{i}.jpg', *index_tar(archive)[f'{i}.jpg']))
    before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
    assert [read_tar_path(path) for path in paths] == [f'{i}.jpg'.encode() for i in range(len(paths))]
    if before:
        assert len(os.listdir('/proc/self/fd')) - before <= tar.OPEN_ARCHIVES


# What is found


def test_the_same_images_in_the_same_order_as_in_the_folder(tmp_path):
    """A run on an archive is the same as one on the folder, including crops."""
    files = ['b.png', 'a/z.PNG', 'a/deep/er/x.png', 'a.png', 'a-b/1.png', 'c/10.png', 'c/9.png']
    packed = {name: picture(i, 'PNG') for i, name in enumerate(files)}
    for name, data in packed.items():
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'images' / name).write_bytes(data)
    archive = pack(tmp_path / 'a.tar', {f'./{name}': data for name, data in packed.items()} | {'a/notes.txt': b'x'})
    folder = ImageFiles(str(tmp_path / 'images'), pipeline=PIPELINE)
    dataset = ImageFiles(archive, pipeline=PIPELINE)
    assert names(dataset) == [path.replace('/images/', '/a.tar!/') for path in names(folder)]
    assert dataset.describe() == f'7 images, no labels, roots {archive}'
    ours, theirs = (
        list(DataLoader(SeededSamples(data), batch_size=1, num_workers=workers, collate_fn=list))
        for data, workers in ((dataset, 1), (folder, 0))
    )
    assert all(a[0]['inputs'].equal(b[0]['inputs']) for a, b in zip(ours, theirs, strict=True))
    assert (dataset.images([0], 20) == folder.images([0], 20)).all()


def test_hidden_files_links_and_doubles(tmp_path):
    archive = pack(
        tmp_path / 'a.tar',
        {'x/1.jpg': b'old', 'x/1.jpg ': b'', '.x/2.jpg': b'', 'x/._1.jpg': b'', '__MACOSX/3.jpg': b''},
        {'y/4.jpg': '../x/1.jpg', 'y/5.jpg': 'gone.jpg'},
    )
    with tarfile.open(archive, 'a') as appended:
        appended.addfile(tarfile.TarInfo('x/1.jpg'), io.BytesIO())
    dataset = ImageFiles(archive)
    assert names(dataset) == [f'{archive}!/x/1.jpg', f'{archive}!/y/4.jpg']
    assert read_tar_path(dataset.get_data_info(0)['img_path']) == b''  # the later of the two


def test_links_that_lead_to_no_file_are_counted(tmp_path):
    links = {'b/2.jpg': '../a/1.jpg', 'b/3.jpg': '2.jpg', 'b/4.jpg': '/elsewhere/4.jpg', 'c': 'a'}
    dataset = ImageFiles(pack(tmp_path / 'a.tar', ['a/1.jpg'], links), labels='folder')
    assert labeled(dataset) == [('a/1.jpg', 0), ('b/2.jpg', 1), ('b/3.jpg', 1)]
    assert read_tar_path(dataset.get_data_info(2)['img_path']) == b'a/1.jpg'
    assert [finding.detail for finding in dataset.findings] == ['not used: 2 unresolved links']
    with pytest.raises(FileNotFoundError, match=r'no images in 1 class folder: c; .*other files there: 1 unresolved'):
        ImageFiles(pack(tmp_path / 'b.tar', ['a/1.jpg', 'b/2.jpg'], {'c/3.jpg': '../../3.jpg'}), labels='folder')


def test_names_and_formats_of_all_kinds(tmp_path):
    odd = ['n\udcff.jpg', f'{"long" * 60}/{"name" * 30}.jpg', '100%.jpg', '#1 @2!/3.jpg', 'näh.jpg']
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        dataset = ImageFiles(pack(tmp_path / 'a!/b.tar', odd, format=form))
        paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
        assert [split_tar_path(path)[1] for path in paths] == sorted(odd)
        assert [fileio.get(path).decode('utf-8', 'surrogateescape') for path in paths] == sorted(odd)


def test_several_archives_by_pattern_and_with_folders(tmp_path):
    pack(tmp_path / 's-1.tar', ['1.jpg'])
    pack(tmp_path / 's-0.tar', ['0.jpg'])
    (tmp_path / 'f').mkdir()
    (tmp_path / 'f/2.jpg').touch()
    dataset = ImageFiles([str(tmp_path / 's-*.tar'), str(tmp_path / 'f')])
    assert names(dataset) == [f'{tmp_path}/s-0.tar!/0.jpg', f'{tmp_path}/s-1.tar!/1.jpg', f'{tmp_path}/f/2.jpg']
    assert names(ImageFiles(str(tmp_path / 's-{0..1}.tar'))) == names(dataset)[:2]
    with pytest.raises(FileNotFoundError, match='s-2.tar does not exist'):
        ImageFiles(str(tmp_path / 's-{0..2}.tar'))
    with pytest.raises(ValueError, match=r's-\{1..0\}.tar counts down: give the lower number first, \{0..1\}'):
        ImageFiles(str(tmp_path / 's-{1..0}.tar'))


# Labels


def test_classes_are_the_folders_inside(tmp_path):
    pack(tmp_path / '1.tar', ['dog/2.jpg', 'cat/deep/3.jpg'])
    pack(tmp_path / '2.tar', ['dog/1.jpg', 'emu/4.jpg'])
    dataset = ImageFiles(str(tmp_path / '?.tar'), labels='folder')
    assert labeled(dataset) == [('cat/deep/3.jpg', 0), ('dog/2.jpg', 1), ('dog/1.jpg', 1), ('emu/4.jpg', 2)]
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'emu')


def test_classes_are_the_names_of_flat_archives(tmp_path):
    for name in ('n02', 'n01', 'n09'):
        pack(tmp_path / f'{name}.tar', [f'{name}_1.jpg'])
    dataset = ImageFiles(str(tmp_path / '*.tar'), labels='folder')
    assert labeled(dataset) == [('n01_1.jpg', 0), ('n02_1.jpg', 1), ('n09_1.jpg', 2)]
    assert dataset.metainfo['classes'] == ('n01', 'n02', 'n09')
    fixed = ImageFiles(str(tmp_path / '*.tar'), labels='folder', classes=['n09', 'n05', 'n02', 'n01'])
    assert labeled(fixed) == [('n09_1.jpg', 0), ('n02_1.jpg', 2), ('n01_1.jpg', 3)]


def test_the_archive_of_archives_that_imagenet_comes_in(tmp_path):
    inner = {
        f'{name}.tar': Path(pack(tmp_path / f'{name}.tar', [f'{name}_1.JPEG'])).read_bytes() for name in ('n01', 'n02')
    }
    dataset = ImageFiles(pack(tmp_path / 'train.tar', inner), labels='folder')
    assert labeled(dataset) == [('n01/n01_1.JPEG', 0), ('n02/n02_1.JPEG', 1)]
    assert read_tar_path(dataset.get_data_info(1)['img_path']) == b'n02_1.JPEG'
    of_macos = {'._n01.tar': b'\0\5\x16\7' + bytes(159), '__MACOSX/n02.tar': b'x'}
    dataset = ImageFiles(pack(tmp_path / 'mac.tar', inner | of_macos), labels='folder')
    assert labeled(dataset) == [('n01/n01_1.JPEG', 0), ('n02/n02_1.JPEG', 1)]
    assert [finding.detail for finding in dataset.findings] == ['not used: 1 hidden file, 1 hidden folder']


def test_splits_inside_an_archive(tmp_path):
    archive = pack(tmp_path / 'a.tar', ['set/train/a/1.jpg', 'set/train/b/2.jpg', 'set/val/b/3.jpg'])
    assert labeled(ImageFiles(archive, labels='folder', split='set/train/')) == [
        ('set/train/a/1.jpg', 0),
        ('set/train/b/2.jpg', 1),
    ]
    assert labeled(ImageFiles(archive, labels='folder', split='set/val')) == [('set/val/b/3.jpg', 1)]


def test_a_list_names_members(tmp_path):
    """ImageNet's validation images are flat."""
    archive = pack(tmp_path / 'val.tar', ['b.jpg', 'a.jpg'])
    (tmp_path / 'list.txt').write_text('b.jpg 3\na.jpg 1\n')
    dataset = ImageFiles(archive, list_file=str(tmp_path / 'list.txt'), labels='list')
    assert labeled(dataset) == [('b.jpg', 3), ('a.jpg', 1)]
    (tmp_path / 'list.txt').write_text('b.jpg\nc.jpg\n')
    with pytest.raises(FileNotFoundError, match=r'list.txt: names c.jpg \(image 2 of 2\).*val.tar'):
        ImageFiles(archive, list_file=str(tmp_path / 'list.txt'))
    (tmp_path / 'list.txt').write_text('./b.jpg 3\n./a.jpg 1\n')  # as tar tf prints them
    dataset = ImageFiles(archive, list_file=str(tmp_path / 'list.txt'), labels='list')
    assert labeled(dataset) == [('b.jpg', 3), ('a.jpg', 1)]


def test_a_list_names_each_image_of_several_archives_once(tmp_path):
    first, second = pack(tmp_path / '1.tar', ['x/1.jpg', '2.jpg']), pack(tmp_path / '2.tar', ['x/1.jpg', '3.jpg'])
    (tmp_path / 'list.txt').write_text('3.jpg\n2.jpg\n')
    dataset = ImageFiles([first, second], list_file=str(tmp_path / 'list.txt'))
    assert names(dataset) == [f'{second}!/3.jpg', f'{first}!/2.jpg']
    (tmp_path / 'list.txt').write_text('3.jpg\nx/1.jpg\n')
    message = rf'names x/1.jpg \(image 2 of 2\), which is both in {first} and in {second}: rename it in one of them'
    with pytest.raises(ValueError, match=message):
        ImageFiles([first, second], list_file=str(tmp_path / 'list.txt'))


# Mistakes


FAULTS = [
    (['s.tar'], {'s.tar': ['1.jpg', '2.jpg']}, ['one class', 's.tar', "labels='list'"]),
    (['s.tar'], {'s.tar': ['1.jpg', 'a/2.jpg']}, ['outside class folders', '1.jpg']),
    (['a.tar', 'b.tar'], {'a.tar': ['1.jpg'], 'b.tar': ['c/2.jpg', 'd/3.jpg']}, ['outside class folders', '1.jpg']),
    (
        ['s-8.tar', 's-9.tar', 's-10.tar'],
        {'s-8.tar': ['1.jpg'], 's-9.tar': ['2.jpg'], 's-10.tar': ['3.jpg']},
        ['shards', 's-8', '`classes`'],
    ),
    (['p/s.tar', 'q/s.tar'], {'p/s.tar': ['1.jpg'], 'q/s.tar': ['1.jpg']}, ['p/s.tar, ', 'q/s.tar have', "class, 's'"]),
    (['p/s1.tar', 'q/s1.tar'], {'p/s1.tar': ['1.jpg'], 'q/s1.tar': ['2.jpg']}, ['one class']),
    (['s.tar'], {'s.tar': ['top/a/1.jpg', 'top/b/2.jpg']}, ["add split='top'", 'one folder']),
    (['s.tar'], {'s.tar': ['train/a/1.jpg', 'val/b/2.jpg']}, ['look like splits', "split='train'"]),
]


@pytest.mark.parametrize('roots, archives, parts', FAULTS)
def test_ambiguous_labels_are_refused(tmp_path, roots, archives, parts):
    for name, files in archives.items():
        pack(tmp_path / name, files)
    with pytest.raises(ValueError) as refused:
        ImageFiles([str(tmp_path / name) for name in roots], labels='folder')
    for part in parts:
        assert part in str(refused.value)
    if 'shards' in parts:  # unless the user says that they are classes
        named = ImageFiles([str(tmp_path / name) for name in roots], labels='folder', classes=['s-8', 's-9', 's-10'])
        assert [label for _, label in labeled(named)] == [0, 1, 2]


def test_mistakes_are_named(tmp_path):
    whole = Path(pack(tmp_path / 'a.tar', {'x/1.jpg': bytes(9000), '2.txt': b''})).read_bytes()

    def refused(data: bytes, error=ValueError, **kwargs) -> str:
        (tmp_path / 'b.tar').write_bytes(data)
        with pytest.raises(error, match='b.tar') as caught:
            ImageFiles(str(tmp_path / 'b.tar'), **kwargs)
        return str(caught.value)

    assert 'not a whole one (unexpected end of data)' in refused(whole[:5000])
    assert 'no header at byte' in refused(whole[:9728] + b'\1' * 512 + bytes(2048))
    assert 'no tar archive' in refused(b'text' * 1000)
    for kind in ('gz', 'bz2', 'xz'):
        with tarfile.open(tmp_path / 'c', f'w:{kind}') as archive:
            archive.addfile(tarfile.TarInfo('1.jpg'))
        assert f'compressed ({dict(gz="gzip", bz2="bzip2", xz="xz")[kind]})' in refused((tmp_path / 'c').read_bytes())
    assert 'found 1 .jpg' in refused(whole, FileNotFoundError, extensions=['png'])
    assert "split='y'" in refused(whole, FileNotFoundError, split='y')
    assert 'no images' in refused(bytes(10240), FileNotFoundError)
    (tmp_path / 'only').mkdir()
    pack(tmp_path / 'only/c.tar', ['1.jpg'])
    with pytest.raises(FileNotFoundError, match=r"roots='.*only/\*\.tar'"):
        ImageFiles(str(tmp_path / 'only'))
    with pytest.raises(FileNotFoundError, match='matches nothing'):
        ImageFiles(str(tmp_path / 'only/*.tgz'))


def test_an_archive_without_its_end_is_warned_of(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tar, 'print_log', lambda message, **kwargs: said.append(message))
    archive = Path(pack(tmp_path / 'a.tar', ['1.jpg']))
    assert len(ImageFiles(str(archive))) == 1
    assert said == []
    archive.write_bytes(archive.read_bytes()[:1024])
    assert len(ImageFiles(str(archive))) == 1
    assert said == [f'{archive} has no end mark: it may have been cut off between two files']


def test_splits_without_labels_are_warned_of(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(findings, 'print_log', lambda message, **kwargs: said.append(message))
    ImageFiles(pack(tmp_path / 'a.tar', ['train/1.jpg', 'val/2.jpg']))
    assert 'the images of the splits train, val are all used' in said[0]


def test_broken_members_are_replaced_and_named(tmp_path):
    jpeg = picture(0, 'JPEG')
    archive = pack(tmp_path / 'a.tar', {'0.jpg': jpeg[:-2] + bytes(2), '1.jpg': jpeg, '2.jpg': jpeg})
    samples = SeededSamples(ImageFiles(archive, pipeline=PIPELINE))
    assert samples[0]['inputs'].shape == (3, 8, 8)
    ((path, reason),) = samples.take_reports()
    assert path == f'{archive}!/0.jpg'
    assert reason == f'ValueError: {archive}!/0.jpg is cut off: a JPEG file without its end'
    os.truncate(archive, 512)
    strict = SeededSamples(samples.dataset, bad='raise')
    tar._archive.cache_clear()
    with pytest.raises(ValueError, match=r'a.tar!/1.jpg cannot be read .*a.tar is cut off: 1.jpg has'):
        strict[1]


def test_verify_data_reads_them(tmp_path):
    jpeg = picture(0, 'JPEG')
    archive = pack(tmp_path / 'a.tar', {'a/1.jpg': jpeg, 'a/2.jpg': jpeg[:300], '3.jpg': b'', '4.jpg': b'no image'})
    (source,) = sources_of_path(archive)
    assert source.title == f'images: 4 images in {archive}'
    found = {finding.path: finding.kind for job in source.jobs for finding in inspect_files(job).findings}
    assert found == {
        f'{archive}!/a/2.jpg': 'truncated',
        f'{archive}!/3.jpg': 'empty file',
        f'{archive}!/4.jpg': 'not an image',
    }
