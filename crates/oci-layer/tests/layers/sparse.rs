//! Sparse files, in the four ways of writing their maps.

use layer_corpus::archive::{Archive, GNU, Header, seal};
use oci_layer::Limits;
use oci_layer::apply::apply;
use oci_layer::tar::{Fragment, Kind, Reader};

use erofs_verity::layer::{LayerWriter, Settings};
use erofs_verity::tree;
use proptest::prelude::*;

use crate::layer::{listing, read};

/// A sparse file of version 1.0.
fn version_1(size: u64, fragments: &[(u64, &[u8])]) -> Archive {
    let mut map = format!("{}\n", fragments.len());
    for (offset, data) in fragments {
        map += &format!("{offset}\n{}\n", data.len());
    }
    let mut data = map.into_bytes();
    data.resize(data.len().next_multiple_of(512), 0);
    fragments.iter().for_each(|(_, bytes)| data.extend_from_slice(bytes));
    let size = size.to_string();
    Archive::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"file"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.1/file", &data)
}

/// Versions 0.0 and 0.1, told apart by their records.
fn version_0(pairs: &[(&str, &[u8])], data: &[u8]) -> Archive {
    Archive::new().pax(pairs).file("file", data)
}

/// An old GNU sparse file whose fragments go on in blocks of 21.
fn old_gnu(size: u64, fragments: &[(u64, &[u8])]) -> Archive {
    let entry = |(offset, data): &(u64, &[u8])| format!("{offset:011o}\0{:011o}\0", data.len()).into_bytes();
    let (main, rest) = fragments.split_at(fragments.len().min(4));
    let stored = fragments.iter().map(|(_, data)| data.len() as u64).sum();
    let mut block = Header { magic: GNU, size: stored, ..Header::new(b'S', "file") }.block();
    block[345..].fill(0);
    for (place, fragment) in block[386..482].chunks_exact_mut(24).zip(main) {
        place.copy_from_slice(&entry(fragment));
    }
    block[482] = u8::from(!rest.is_empty());
    block[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    seal(&mut block);
    let mut archive = Archive::new().raw(&block);
    let blocks = rest.chunks(21).count();
    for (nth, fragments) in rest.chunks(21).enumerate() {
        let mut block = [0; 512];
        for (place, fragment) in block.chunks_exact_mut(24).zip(fragments) {
            place.copy_from_slice(&entry(fragment));
        }
        block[504] = u8::from(nth + 1 < blocks);
        archive = archive.raw(&block);
    }
    let data: Vec<u8> = fragments.iter().flat_map(|(_, data)| data.iter().copied()).collect();
    archive.data(&data)
}

#[test]
fn all_versions_give_the_same_file() {
    let fragments: &[(u64, &[u8])] = &[(3, b"abc"), (10_000, b"defg"), (19_998, b"hi")];
    let listed = b"3,3,10000,4,19998,2";
    let archives = [
        version_1(20_000, fragments),
        version_0(
            &[("GNU.sparse.size", b"20000"), ("GNU.sparse.numblocks", b"3"), ("GNU.sparse.map", listed)],
            b"abcdefghi",
        ),
        version_0(
            &[
                ("GNU.sparse.size", b"20000"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.offset", b"3"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"10000"),
                ("GNU.sparse.numbytes", b"4"),
                ("GNU.sparse.offset", b"19998"),
                ("GNU.sparse.numbytes", b"2"),
            ],
            b"abcdefghi",
        ),
        old_gnu(20_000, fragments),
    ];
    for archive in archives {
        let archive = archive.file("after", b"x").finish();
        let mut reader = Reader::new(&archive[..]);
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"file");
        let Kind::Sparse(map) = entry.kind else { panic!("{:?}", entry.kind) };
        assert_eq!(map.size(), 20_000);
        let expected = [(3, 3), (10_000, 4), (19_998, 2)].map(|(offset, length)| Fragment { offset, length });
        assert_eq!(map.fragments(), expected);
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"after");
        assert_eq!(
            listing(&archive).unwrap()[1..],
            [r#"f 644 0:0 1 /after "x""#, "f 644 0:0 1 /file 20000 bytes"]
        );
    }
}

#[test]
fn old_gnu_maps_go_on_in_further_blocks() {
    let data = [b'x'; 1];
    let fragments: Vec<(u64, &[u8])> = (0..100).map(|nth| (nth * 5000, &data[..])).collect();
    let (content, _) = content_of(old_gnu(500_000, &fragments));
    let expected: Vec<u8> = (0..500_000).map(|at| if at % 5000 == 0 { b'x' } else { 0 }).collect();
    assert!(content == expected);
}

#[test]
fn files_of_holes_alone_take_no_blocks() {
    for size in [1, 4096, 5_000_000, 1 << 40] {
        let archive = version_1(size, &[]).finish();
        let image = tempfile::tempfile().unwrap();
        let mut writer = LayerWriter::new(&image, &Settings::default()).unwrap();
        let limits = Limits::default();
        let tree = apply(&mut Reader::new(&archive[..]), &mut writer, &limits, limits.memory).unwrap().tree;
        let layer = writer.finish(tree).unwrap();
        // Superblock, metadata, and an index of at most 1024 chunks of 1 GiB.
        assert!(layer.data_blocks <= 4, "{} blocks for {size} bytes", layer.data_blocks);
    }
}

#[test]
fn maps_that_lie_are_refused() {
    let map = |list: &[u8], count: &[u8]| {
        let pairs: &[(&str, &[u8])] =
            &[("GNU.sparse.size", b"100"), ("GNU.sparse.numblocks", count), ("GNU.sparse.map", list)];
        version_0(pairs, b"0123456789")
    };
    for (archive, message) in [
        (map(b"0,5,4,5", b"2"), "fragments in order, apart from each other and inside the file"),
        (map(b"50,5,0,5", b"2"), "fragments in order"),
        (map(b"0,5,96,5", b"2"), "fragments in order"),
        (map(b"9223372036854775807,9223372036854775807", b"1"), "fragments in order"),
        (map(b"0,11", b"1"), "found 11 bytes in the map and 10 in the archive"),
        (map(b"0,9", b"1"), "found 9 bytes in the map and 10 in the archive"),
        (map(b"0,10", b"2"), "found 2 numbers for 2 fragments"),
        (map(b"0,10", b"99999999"), "number of sparse fragments"),
        (map(b"-1,10", b"1"), "numbers from 0 to 2^63 - 1"),
        (map(b"0,10,", b"1"), "numbers from 0 to 2^63 - 1"),
        (version_0(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b""), "found \"2.0\""),
        (
            version_0(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b""),
            "the size of a sparse file",
        ),
        (version_1(4, &[(0, b"12345")]), "fragments in order"),
        (version_1(1 << 60, &[]), "expected at most 65536 GiB in a sparse file"),
    ] {
        let error = listing(&archive.finish()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_map_that_needs_much_room_is_refused() {
    // Few bytes in the archive, but each in a chunk of its own.
    let fragments: Vec<(u64, &[u8])> = (0..10_000).map(|nth| (nth << 30, &b"x"[..])).collect();
    let archive = version_1(10_000 << 30, &fragments).finish();
    let error = listing(&archive).unwrap_err().to_string();
    assert!(
        error.contains("expected sparse files that take at most 68719476736 bytes of the image"),
        "{error}"
    );
}

/// The content of the archive's only file, and where it lies.
fn content_of(archive: Archive) -> (Vec<u8>, tree::Data) {
    let archive = archive.finish();
    let image = tempfile::tempfile().unwrap();
    let mut writer = LayerWriter::new(&image, &Settings::default()).unwrap();
    let limits = Limits::default();
    let tree = apply(&mut Reader::new(&archive[..]), &mut writer, &limits, limits.memory).unwrap().tree;
    let file = tree.lookup(b"file").unwrap();
    let Some(tree::Kind::Regular { size, data }) = tree.kind(file) else { panic!("not a file") };
    writer.finish(tree).unwrap();
    (read(&image, size, &data), data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn content_comes_back_whatever_the_map(
        pieces in prop::collection::vec((0u64..40_000, 1usize..9000), 0..12),
        tail in 0u64..100_000,
    ) {
        let mut expected = Vec::new();
        let mut fragments = Vec::new();
        let pattern: Vec<u8> = (0..=250).cycle().skip(1).take(9000).collect();
        for (hole, length) in pieces {
            expected.resize(expected.len() + usize::try_from(hole).unwrap(), 0);
            fragments.push((expected.len() as u64, &pattern[..length]));
            expected.extend_from_slice(&pattern[..length]);
        }
        expected.resize(expected.len() + usize::try_from(tail).unwrap(), 0);
        let (content, _) = content_of(version_1(expected.len() as u64, &fragments));
        prop_assert!(content == expected);
    }
}
