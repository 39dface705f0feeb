import random

from tests.torture.faults import Op
from tests.torture.powerloss import Disk, crashes, without_sync


def op(kind, inode, path="", path2="", offset=0, data=b""):
    return Op(kind, inode, offset, path, path2, data)


PROTOCOL = [
    op("create", 7, "old"),
    op("write", 7, "old", data=b"old"),
    op("fsync", 7, "old"),
    op("fsync", 1),
    op("note", 0, data=b"old"),
    op("create", 8, ".tmp"),
    op("write", 8, ".tmp", data=b"n" * 700),
    op("fsync", 8, ".tmp"),
    op("rename", 8, ".tmp", "new"),
    op("fsync", 1),
    op("note", 0, data=b"new"),
]


def states(trace, seed=0):
    return [(c.notes, c.tree) for c in crashes(trace, seed=seed, per_point=200)]


def lost_or_torn(trace):
    """Whether a noted file may be missing, or a file with a final name may be torn."""
    whole = {"old": b"old", "new": b"n" * 700}
    return any(
        any(tree.get(name) != whole[name] for name in notes)
        or any(tree[name] != whole[name] for name in whole.keys() & tree.keys() - {"old"})
        for notes, tree in states(trace)
    )


def test_the_running_state_is_that_of_the_operations():
    disk = Disk()
    for each in [
        *PROTOCOL,
        op("mkdir", 9, "d"),
        op("link", 8, "new", "d/best"),
        op("unlink", 7, "old"),
        op("create", 7, "d/again"),  # the file system uses the inode again
        op("write", 7, "d/again", offset=2, data=b"x"),
        op("truncate", 8, "new", offset=1),
        op("allocate", 8, "new", offset=3),
    ]:
        disk.apply(each)
    expected = {"d": None, "d/again": b"\0\0x", "d/best": b"n\0\0", "new": b"n\0\0"}
    assert disk.tree() == expected


def test_the_protocol_loses_nothing():
    assert not lost_or_torn(PROTOCOL)


def test_each_fsync_left_out_is_noticed():
    for index, each in enumerate(PROTOCOL):
        if each.kind == "fsync":
            assert lost_or_torn(PROTOCOL[:index] + PROTOCOL[index + 1 :]), index
    assert lost_or_torn(without_sync(PROTOCOL, lambda o: o.inode == 8))


def test_unsynced_names_may_vanish_in_any_subset():
    trace = [op("create", n, f"f{n}") for n in range(1, 4)]
    seen = {frozenset(tree) for _, tree in states(trace)}
    names = ["f1", "f2", "f3"]
    subsets = [{n for i, n in enumerate(names) if bits >> i & 1} for bits in range(8)]
    assert seen == {frozenset(s) for s in subsets}


def test_unsynced_data_may_be_old_new_zero_torn_or_of_another_size():
    disk = Disk()
    old, new = b"a" * 600, b"a" * 600 + b"b" * 900
    for each in [
        op("create", 5, "f"),
        op("write", 5, "f", data=old),
        op("fsync", 5, "f"),
        op("fsync", 1),
        op("write", 5, "f", offset=600, data=b"b" * 900),
    ]:
        disk.apply(each)
    seen = {tree["f"] for tree in disk.after_power_loss(random.Random(0), 10_000)}
    assert {old, new, old + b"\0" * 900} <= seen
    assert all(content[:600] == old for content in seen), "what was synced is there"
    middle = {content[1024:] for content in seen if len(content) == 1500}
    assert len(middle) >= 3, "torn at more than one place"


def test_states_are_found_again_with_the_seed():
    assert states(PROTOCOL, 3) == states(PROTOCOL, 3)
    assert len(states(PROTOCOL, 3)) > 12
