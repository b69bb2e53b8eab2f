"""Images that are made late are the same images, and their keys tell them apart without making them."""

from __future__ import annotations

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.data.deferred import Deferred
from advisor.data.loading import LabelledImages


class Source:
    """Images of one colour each, and how often they were made."""

    def __init__(self, colours, name="source"):
        self.made = 0
        self.colours, self.name = colours, name

    def labelled(self):
        count = len(self.colours)
        return LabelledImages(Deferred((count, 1, 2, 2), self.make, lambda: self.name), torch.arange(count))

    def make(self):
        self.made += 1
        return torch.tensor(self.colours, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def halved(images):
    return images // 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("those"), st.lists(st.integers(0, 2), min_size=3, max_size=6)),
        st.just(("joined", None)),
        st.just(("changed", None)),
        st.just(("labelled", None)),
    ),
    max_size=4,
)


def run(images, steps):
    for step, given_ in steps:
        if step == "those":
            images = images.those(torch.tensor(given_))
        elif step == "joined":
            images = LabelledImages.joined(images, images.those(torch.arange(len(images)) > 0))
        elif step == "changed":
            images = LabelledImages(images.undecoded.changed(halved, "halved"), images.labels)
        else:
            images = images.labelled(images.labels + 1)
    return images


@given(STEPS, STEPS)
@settings(deadline=None)
def test_late_or_at_once_the_images_are_the_same_and_equal_keys_mean_equal_images(one, other):
    source = Source([7, 40, 90])
    late = [run(source.labelled(), steps) for steps in (one, other)]
    keys = [images.key for images in late]
    assert source.made == 0  # nor for its size
    assert [len(images) for images in late] == [images.undecoded.shape[0] for images in late]
    at_once = [run(LabelledImages(source.make(), torch.arange(3)), steps) for steps in (one, other)]
    for images, expected in zip(late, at_once, strict=True):
        assert images.undecoded.shape == tuple(images.images.shape)
        assert torch.equal(images.images, expected.images)
        assert torch.equal(images.labels, expected.labels)
    equal = late[0].images.tolist() == late[1].images.tolist() and torch.equal(*(i.labels for i in late))
    assert equal or keys[0] != keys[1]
    assert one != other or keys[0] == keys[1]


def test_images_are_made_once_whoever_looks_and_sent_as_what_they_are():
    source = Source([1, 2, 3])
    images = source.labelled()
    others = images.labelled(images.labels + 1)
    sent = pickle.loads(pickle.dumps(others))
    assert torch.equal(sent.images, images.images)
    assert torch.equal(images.images, others.images)
    assert source.made == 1
    assert sent.key == others.key != images.key


def test_images_of_no_files_are_told_apart_by_their_bytes():
    labels = torch.arange(3)
    one, same, other = (LabelledImages(Source(c).make(), labels) for c in ([1, 2, 3], [1, 2, 3], [1, 3, 2]))
    assert one.key == same.key != other.key
