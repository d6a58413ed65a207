"""The device's part in reading images: JPEG files of a batch are decoded, cropped, resized and flipped there.

B images, K of them finished by the workers, S_h x S_w output, H x W an image's own size.

nvJPEG through ``torchvision.io.decode_jpeg(list, device='cuda')``, as far as its source (torchvision 0.26) tells:

* It takes one-dimensional uint8 tensors on the CPU. Baseline files go to the chip's JPEG engine in one batch where
  there is one (A100, H100); all others are decoded one by one, each with a wait.
* The work runs on a stream of its own, for which the host waits before the call returns. So the host must be ahead of
  the device by as much as decoding takes, which it is if it is called while a training step is still running.
* The images' memory is allocated on the *current* stream, but is written to without waiting for it (a known fault,
  pytorch/vision#9606). :meth:`DeviceStage._decode` therefore waits until that stream has read what it had.
* One bad file fails the whole batch, and nothing says which it was.
* Chroma is upsampled by repetition, unlike on the CPU, which interpolates. With libjpeg doing so in its place, crops of
  54 ImageNet files in 4:2:0 differed from Pillow's by 0.53 levels on average, in one by 1.8; 190 in 4:4:4 by 0.18.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from .samples import SeededSamples
from .tar import readable

BYTES_AT_ONCE = 2**26  # of files: 130 million pixels of ImageNet's, 400 MB decoded
RESIZED_AT_ONCE = 64  # images that are float32 at a time: 39 MB at 224 pixels
LARGEST_SCALE = 40  # CUDA's antialiased resizing keeps the weights of a pixel in 48 kB: about 47 is its end

Item = dict[str, torch.Tensor | BaseDataElement]


@FUNCTIONS.register_module()
def collate_encoded(items: Sequence[Item]) -> dict:
    """A batch of files' bytes and of finished images, in few tensors: each costs a worker a file handle to send.

    Args:
        items: ``inputs``, uint8, the bytes of a JPEG file (bytes, ) or a finished image (3, S_h, S_w), and
            ``data_samples`` with ``crop_box`` (5, ): top, left, height, width and whether to flip.

    Returns:
        ``data_samples``, without their boxes, and ``inputs``: ``data`` all bytes in a row, ``lengths`` (B, ) of the
        files in it, 0 for a finished image, ``boxes`` (B, 5), and ``finished`` (K, 3, S_h, S_w).
    """
    tensors, samples = [item['inputs'] for item in items], [item['data_samples'] for item in items]
    files = [tensor for tensor in tensors if tensor.ndim == 1]
    finished = [tensor for tensor in tensors if tensor.ndim == 3]
    inputs = dict(
        data=torch.cat(files) if files else torch.empty(0, dtype=torch.uint8),
        lengths=torch.tensor([len(tensor) if tensor.ndim == 1 else 0 for tensor in tensors]),
        boxes=torch.stack([torch.as_tensor(sample.pop('crop_box')) for sample in samples]),
    )
    return dict(inputs=inputs | (dict(finished=torch.stack(finished)) if finished else {}), data_samples=samples)


class DeviceStage:
    """Turns a batch of the loader into images on the device: uint8 (B, 3, S_h, S_w), BGR.

    Batches are those of :func:`collate_encoded`, or of ``pseudo_collate`` with a ``crop_box`` in each data sample. Any
    other batch is copied to the device and left as it is, which is without waiting if its memory is pinned.

    On a GPU all happens on a stream of its own, for which the caller's stream waits. Call it when a training step has
    just been launched, from the same thread: a thread of its own would meet CUDA graphs while they are captured.
    On the CPU the same is done with torchvision's decoder, and the result is that of :class:`ReadCrop`.

    A file that the device's decoder refuses is decoded on the CPU. If that fails too it is a broken sample, which
    ``samples`` reports and replaces (:meth:`SeededSamples.replace`).

    Args:
        size: S, or (S_h, S_w).
        device: where to.
        samples: the training loader's data set.
        decode: as ``torchvision.io.decode_jpeg`` for a list, with ``mode`` and ``device``.

    Attributes:
        on_cpu: how many files the device's decoder has refused so far.

    Raises:
        ValueError: for a device that is neither a GPU of CUDA nor the CPU. When called, for a broken sample without
            ``samples`` to replace it; names the file.
        UnreadableSample: when called, as of ``samples``.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        device: str | torch.device = 'cuda',
        samples: SeededSamples | None = None,
        decode: Callable[..., list[torch.Tensor]] = decode_jpeg,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        self.size = (height, width)
        self.device, self.samples, self.decode = torch.device(device), samples, decode
        if self.device.type not in ('cuda', 'cpu'):
            raise ValueError(
                f'device={str(device)!r}: JPEG files are decoded on cuda or cpu; read images in the '
                'workers instead, with reader=cpu'
            )
        self.stream, self.on_cpu = None, 0
        if self.device.type == 'cuda':
            if self.device.index is None:  # torchvision's decoder belongs to the device of its first call
                self.device = torch.device('cuda', torch.cuda.current_device())
            # Its kernels are small, and the host waits for what is before them: they go first.
            self.stream = torch.cuda.Stream(self.device, priority=-1)

    def __call__(self, batch: dict) -> dict:
        inputs, samples = batch['inputs'], batch.get('data_samples')
        if isinstance(inputs, (list, tuple)) and samples and 'crop_box' in samples[0]:
            inputs = collate_encoded([dict(inputs=i, data_samples=s) for i, s in zip(inputs, samples)])['inputs']
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            if isinstance(inputs, dict) and 'boxes' in inputs:
                samples = list(samples)
                inputs = self._images(inputs, samples)
            else:
                inputs = _move(inputs, self.device)
        if self.stream is not None:
            caller = torch.cuda.current_stream(self.device)
            caller.wait_stream(self.stream)
            for tensor in _tensors(inputs):
                tensor.record_stream(caller)  # or its memory would be given to the next batch while it is read
        return dict(batch, inputs=inputs) | ({} if samples is None else dict(data_samples=samples))

    def _images(self, inputs: dict[str, torch.Tensor], samples: list[BaseDataElement]) -> torch.Tensor:
        """The batch (B, 3, S_h, S_w); replaces the data samples of broken files."""
        lengths, boxes = inputs['lengths'].tolist(), inputs['boxes'].tolist()
        files = inputs['data'].split(lengths)  # views, each contiguous
        finished = iter(())
        if 'finished' in inputs:
            finished = iter(inputs['finished'].to(self.device, non_blocking=True).flip(1))  # RGB, as a decoder gives it
        out = []
        for chunk in _chunks(lengths):
            decoded = iter(self._decode([files[i] for i in chunk if lengths[i]]))
            images = []
            for i in chunk:
                image = next(decoded) if lengths[i] else next(finished)
                images.append(self._replace(image, i, boxes, samples) if isinstance(image, Exception) else image)
            for k in range(0, len(chunk), RESIZED_AT_ONCE):
                part = slice(k, k + RESIZED_AT_ONCE)
                out.append(crop_and_resize(images[part], [boxes[i] for i in chunk[part]], self.size))
        return torch.cat(out)

    def _decode(self, files: list[torch.Tensor]) -> list[torch.Tensor | Exception]:
        """The images (3, H, W), RGB, of files; the reason in place of one that cannot be decoded."""
        if not files:
            return []
        if self.stream is not None:
            self.stream.synchronize()  # for resizing of what was decoded before; it waits for no training step
        try:
            return self.decode(files, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError:
            if self.stream is not None:
                torch.cuda.synchronize(self.device)  # the decoder may still write to what is free again
        if len(files) > 1:
            middle = len(files) // 2
            return self._decode(files[:middle]) + self._decode(files[middle:])
        self.on_cpu += 1
        try:
            image = decode_jpeg(files[0], mode=ImageReadMode.RGB)
        except RuntimeError as error:
            return [error]
        return [image.to(self.device)]

    def _replace(self, error: Exception, i: int, boxes: list[list[int]], samples: list[BaseDataElement]):
        """The image that comes in the place of a broken one, RGB, on the device; changes its box and data sample."""
        while isinstance(error, Exception):
            if self.samples is None or 'sample_key' not in samples[i]:
                raise ValueError(
                    f'{readable(samples[i].get("img_path", f"image {i} of the batch"))} cannot be decoded '
                    f'({error}): mend or remove it; tools/verify_data.py finds all such files'
                ) from error
            item = self.samples.replace(samples[i].sample_key, samples[i].sample_attempt, error)
            image, samples[i] = item['inputs'], item['data_samples']
            boxes[i] = torch.as_tensor(samples[i].pop('crop_box')).tolist()
            error = image.to(self.device).flip(0) if image.ndim == 3 else self._decode([image])[0]
        return error


def crop_and_resize(
    images: Sequence[torch.Tensor], boxes: Sequence[Sequence[int]], size: tuple[int, int], exact: bool | None = None
) -> torch.Tensor:
    """Boxes of images, resized to one size (bicubic, antialiased), perhaps flipped, channels reversed.

    Args:
        images: B uint8 tensors (3, H, W).
        boxes: B times top, left, height, width and whether to flip.
        size: (S_h, S_w).
        exact: resize in float32 and round once, to even, as torchvision does on a GPU; otherwise in uint8, which only
            the CPU can and which rounds after each of its two passes. None: as the device of the images has it.

    Returns:
        uint8 (B, 3, S_h, S_w).
    """
    exact = images[0].is_cuda if exact is None else exact
    rows = []
    for image, (top, left, height, width, _) in zip(images, boxes):
        row = image[None, :, top : top + height, left : left + width]
        if (height, width) != size:
            # Two kernels an image, from here on some ten for all of them.
            row = _resize(row.float() if exact else row, size)
        rows.append(row.float() if exact else row)
    out = torch.cat(rows)
    if exact:
        out = out.clamp_(0, 255).round_().to(torch.uint8)
    flipped = torch.tensor([bool(box[4]) for box in boxes])[:, None, None, None]
    out = out.flip(1)
    return torch.where(flipped.to(out.device, non_blocking=True), out.flip(3), out)


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    scale = max(image.shape[-2] / size[0], image.shape[-1] / size[1])
    if image.is_cuda and scale > LARGEST_SCALE:
        return interpolate(image.cpu(), size, mode='bicubic', antialias=True).to(image.device)
    return interpolate(image, size, mode='bicubic', antialias=True)


def _chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of the files of a batch, in order, so that not too much is decoded at once."""
    chunk, total = [], 0
    for i, length in enumerate(lengths):
        if chunk and total + length > BYTES_AT_ONCE:
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += length
    yield chunk


def _move(inputs, device: torch.device):
    """Tensors, alone or in lists and dicts, on a device."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, dict):
        return {name: _move(value, device) for name, value in inputs.items()}
    return [_move(value, device) for value in inputs] if isinstance(inputs, (list, tuple)) else inputs


def _tensors(inputs) -> Iterator[torch.Tensor]:
    if isinstance(inputs, torch.Tensor):
        yield inputs
    elif isinstance(inputs, (dict, list, tuple)):
        for value in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from _tensors(value)
