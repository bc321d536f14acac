//! Random and damaged archives: an error or a layer that `fsck.erofs` accepts, never a panic.

use std::process::Command;
use std::sync::LazyLock;

use layer_corpus::archive::{Archive, Header, seal};
use oci_layer::{Limits, convert};
use proptest::prelude::*;

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

#[test]
fn ten_million_entries_are_refused_in_bounded_memory() {
    /// Headers of empty files, each with a name of its own.
    struct Headers(std::ops::Range<u32>);
    impl std::io::Read for Headers {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            let mut filled = 0;
            for (place, number) in bytes.as_chunks_mut::<512>().0.iter_mut().zip(&mut self.0) {
                *place = Header::new(b'0', number.to_string()).block();
                filled += 512;
            }
            Ok(filled)
        }
    }
    let limits = Limits { entries: 20_000, ..Limits::default() };
    for (limits, message) in [
        (limits.clone(), "expected at most 20000 entries, found more"),
        (Limits { memory: 2 << 20, ..Limits::default() }, "bytes in memory"),
    ] {
        let error = convert(Headers(0..10_000_000), &tempfile::tempfile().unwrap(), &limits).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
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
        let file = tempfile::NamedTempFile::new().unwrap();
        if convert(&archive[..], file.as_file(), &small()).is_ok() {
            let checked = Command::new("fsck.erofs").arg(file.path()).output();
            let Ok(checked) = checked else {
                eprintln!("skipped: fsck.erofs of the package erofs-utils is not installed");
                return Ok(());
            };
            prop_assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}
