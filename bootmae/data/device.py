"""Decoding, cropping, resizing and flipping of a batch of JPEG files on the GPU.

Shape letters: B images of a batch, K images that the workers have finished, S_h x S_w output size, H x W image size.

``torchvision.io.decode_jpeg(list, device='cuda')`` calls nvJPEG. Its source (torchvision 0.26) shows:

* It takes one-dimensional uint8 tensors on the CPU. GPUs with a JPEG engine (A100, H100) decode baseline files in one
  batch. All other files are decoded one by one, with a synchronization each.
* The work runs on a stream of its own, and the call returns when that stream is done. Call it while a training step is
  running, so that the host is ahead of the device by the time that decoding takes.
* The memory of the images is allocated on the *current* stream, but written without waiting for it (a known bug,
  pytorch/vision#9606). :meth:`DeviceStage._decode` therefore waits for that stream first.
* One bad file fails the whole batch, and the error does not name it.
* Chroma is upsampled by repetition; the CPU decoder interpolates. In crops of ImageNet files the mean difference from
  Pillow, measured with libjpeg's repetition, was 0.53 levels for 54 files in 4:2:0 (1.8 in the worst one) and 0.18 for
  190 files in 4:4:4.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from ..text import count_of
from .samples import SeededSamples, reason
from .tar import readable

BYTES_AT_ONCE = 2**26  # compressed bytes; 130 million pixels of ImageNet, 400 MB decoded
WHOLE_BATCH = 8  # files; all of fewer may be unusual
RESIZED_AT_ONCE = 64  # float32 images; 39 MB at 224 pixels
LARGEST_SCALE = 40  # CUDA's antialiased resizing fails from about 47 on: its weights must fit 48 kB of shared memory

Item = dict[str, torch.Tensor | BaseDataElement]


@FUNCTIONS.register_module()
def collate_encoded(items: Sequence[Item]) -> dict:
    """Collate encoded files and finished images into few tensors; a worker needs a file handle to send each.

    Args:
        items: Samples. ``inputs`` is uint8: the bytes of a JPEG file (bytes,) or a finished image (3, S_h, S_w).
            ``data_samples`` has ``crop_box`` (5,): top, left, height, width and whether to flip.

    Returns:
        ``data_samples`` without their boxes, and ``inputs``: ``data``, the concatenated bytes; ``lengths`` (B,) of the
        files in it, 0 for a finished image; ``boxes`` (B, 5); and ``finished`` (K, 3, S_h, S_w).
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
    """Turn a batch of the loader into images on the device: uint8 (B, 3, S_h, S_w), BGR.

    It takes batches of :func:`collate_encoded`, or of ``pseudo_collate`` with a ``crop_box`` in each data sample. Any
    other batch is copied to the device unchanged, asynchronously if its memory is pinned.

    On a GPU all work runs on a stream of its own, and the caller's stream waits for it. Call the stage right after a
    training step has been launched, and from the same thread: another thread could interfere with the capture of CUDA
    graphs. On the CPU torchvision's decoder gives the same result as :class:`ReadCrop`.

    A file that the device's decoder refuses is decoded on the CPU. If that fails too, ``samples`` reports and replaces
    it (:meth:`SeededSamples.replace`). A decoder that refuses a whole batch is not used again.

    Args:
        size: S, or (S_h, S_w).
        device: Target device, CUDA or CPU.
        samples: Data set of the training loader.
        decode: Decoder of a list of files, with the arguments of ``torchvision.io.decode_jpeg``.

    Attributes:
        on_cpu: Number of files that the device's decoder has refused so far.

    Raises:
        ValueError: If the device is neither CUDA nor the CPU; when called, if a file is broken and there are no
            ``samples`` to replace it. Names the file.
        UnreadableSample: When called, see :class:`SeededSamples`.
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
        self.stream, self.on_cpu, self.useless = None, 0, False
        if self.device.type == 'cuda':
            if self.device.index is None:  # torchvision's decoder stays on the device of its first call
                self.device = torch.device('cuda', torch.cuda.current_device())
            # High priority: the kernels are small, and the host waits for them.
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
                tensor.record_stream(caller)  # otherwise the next batch could get its memory while it is being read
        return dict(batch, inputs=inputs) | ({} if samples is None else dict(data_samples=samples))

    def _images(self, inputs: dict[str, torch.Tensor], samples: list[BaseDataElement]) -> torch.Tensor:
        """Decode and crop a batch: (B, 3, S_h, S_w). Replaces the data samples of broken files in ``samples``."""
        lengths, boxes = inputs['lengths'].tolist(), inputs['boxes'].tolist()
        files = inputs['data'].split(lengths)  # contiguous views
        finished = iter(())
        if 'finished' in inputs:
            finished = iter(inputs['finished'].to(self.device, non_blocking=True).flip(1))  # RGB, as decoded
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
        """Decode files to RGB images (3, H, W). A file that cannot be decoded gives its exception instead."""
        if self.useless:
            return [self._decode_on_cpu(file) for file in files]
        before = self.on_cpu
        images = self._decode_parts(files) if files else []
        if self.on_cpu - before == len(files) >= WHOLE_BATCH:
            self.useless = True
            _warn(
                f'the decoder of {self.device} refuses a whole batch of {count_of(len(files), "file")}, so this '
                'process decodes all on the CPU, which is slow: use reader=cpu'
            )
        return images

    def _decode_parts(self, files: list[torch.Tensor]) -> list[torch.Tensor | Exception]:
        """Decode files on the device, and halves of them if it refuses some, down to single ones for the CPU."""
        if self.stream is not None:
            self.stream.synchronize()  # the previous chunk must be resized; this does not wait for a training step
        try:
            return self.decode(files, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError as error:
            if self.stream is not None:
                torch.cuda.synchronize(self.device)  # the decoder may still write to memory that is free again
            if len(files) == 1:
                if not self.on_cpu:
                    _warn(f'the decoder of {self.device} refuses a file ({reason(error)}); the CPU decodes such files')
                self.on_cpu += 1
                return [self._decode_on_cpu(files[0])]
        middle = len(files) // 2
        return self._decode_parts(files[:middle]) + self._decode_parts(files[middle:])

    def _decode_on_cpu(self, file: torch.Tensor) -> torch.Tensor | Exception:
        try:
            image = decode_jpeg(file, mode=ImageReadMode.RGB)
        except RuntimeError as error:
            return error
        return image.to(self.device)

    def _replace(self, error: Exception, i: int, boxes: list[list[int]], samples: list[BaseDataElement]):
        """Return the image that replaces a broken one, RGB, on the device; update its box and data sample."""
        while isinstance(error, Exception):
            if self.samples is None or 'sample_key' not in samples[i]:
                raise ValueError(
                    f'{readable(samples[i].get("img_path", f"image {i} of the batch"))} cannot be decoded '
                    f'({error}): repair or remove it; tools/verify_data.py finds all such files'
                ) from error
            item = self.samples.replace(samples[i].sample_key, samples[i].sample_attempt, error)
            image, samples[i] = item['inputs'], item['data_samples']
            boxes[i] = torch.as_tensor(samples[i].pop('crop_box')).tolist()
            error = image.to(self.device).flip(0) if image.ndim == 3 else self._decode([image])[0]
        return error


def _warn(message: str) -> None:
    print_log(f'reader=gpu: {message}', logger='current', level=logging.WARNING)


def crop_and_resize(
    images: Sequence[torch.Tensor], boxes: Sequence[Sequence[int]], size: tuple[int, int], exact: bool | None = None
) -> torch.Tensor:
    """Crop boxes, resize them to one size (bicubic, antialiased), flip them if asked, and reverse the channels.

    Args:
        images: B uint8 tensors (3, H, W).
        boxes: Top, left, height, width and whether to flip, for each image.
        size: (S_h, S_w).
        exact: True resizes in float32 and rounds once, to even, as torchvision does on a GPU. False resizes in uint8,
            which only the CPU can do and which rounds after each of the two passes. None chooses by the device.

    Returns:
        uint8 (B, 3, S_h, S_w).
    """
    exact = images[0].is_cuda if exact is None else exact
    rows = []
    for image, (top, left, height, width, _) in zip(images, boxes):
        row = image[None, :, top : top + height, left : left + width]
        if (height, width) != size:
            # Two kernels for each image; the rest takes about ten kernels for the whole batch.
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
    """Yield the indices of a batch in chunks that limit the memory of decoded images."""
    chunk: list[int] = []
    total = 0
    for i, length in enumerate(lengths):
        if chunk and total + length > BYTES_AT_ONCE:
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += length
    yield chunk


def _move(inputs, device: torch.device):
    """Copy tensors, alone or nested in lists and dicts, to a device."""
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
