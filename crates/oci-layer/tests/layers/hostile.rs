//! Random and damaged archives: an error or a layer, never a panic.

use std::sync::LazyLock;

use oci_layer::{Limits, convert};
use proptest::prelude::*;

use crate::archive::{Archive, Header, seal};
use crate::layer::listing;

/// Something of everything.
static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    Archive::new()
        .directory("a/")
        .file("a/b", &[9; 5000])
        .pax(&[("path", b"a/long"), ("SCHILY.xattr.user.x", b"1"), ("mtime", b"5.5")])
        .file("x", b"abc")
        .symlink("l", "a")
        .hard_link("l/c", "a/b")
        .file("a/.wh.gone", b"")
        .file("a/.wh..wh..opq", b"")
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99999")])
        .file("s", &[&b"1\n50000\n3\n"[..], &[0; 502], b"abc"].concat())
        .gnu_long(b'L', &[b'n'; 150])
        .entry(Header::new(b'3', "dev"), &[])
        .finish()
});

fn small() -> Limits {
    Limits { uncompressed_bytes: 1 << 20, entries: 100, memory: 1 << 20, path_bytes: 4096 }
}

#[test]
fn the_sample_itself_is_accepted() {
    assert_eq!(listing(&SAMPLE).unwrap().len(), 9);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = convert(&bytes[..], &tempfile::tempfile().unwrap(), &small());
    }

    #[test]
    fn damaged_archives_with_right_check_sums(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut archive = SAMPLE.clone();
        for (place, byte) in changes {
            let place = place.index(archive.len());
            archive[place] = byte;
        }
        if is_cut {
            archive.truncate(cut.index(archive.len()));
        }
        for block in archive.as_chunks_mut::<512>().0 {
            if block[257..262] == *b"ustar" {
                seal(block);
            }
        }
        let _ = convert(&archive[..], &tempfile::tempfile().unwrap(), &small());
    }
}
