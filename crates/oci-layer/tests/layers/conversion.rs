//! Whole conversions: digests, compressions, determinism, limits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use erofs_verity::layer::Settings;
use flate2::write::GzEncoder;
use layer_corpus::archive::{Archive, Header};
use oci_layer::compression::{Compression, zstd_window};
use oci_layer::{ConvertError, Converted, Digest, Limits, convert, convert_with};
use sha2::{Digest as _, Sha256};

/// Root hash of [`sample`]. It changes only if the layer format does, and then every layer's does.
const SAMPLE_ROOT: &str = "063df58e6977718bac917401d1b6198ae90272f65b2338d50d11dcea4e3cc6d7";

fn sample() -> Vec<u8> {
    let text: Vec<u8> = (0u32..300_000).flat_map(|number| number.to_le_bytes()).collect();
    Archive::new()
        .entry(Header { mode: 0o1777, ..Header::new(b'5', "tmp/") }, &[])
        .pax(&[("mtime", b"1700000000.5"), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0")])
        .entry(Header { mode: 0o4755, uid: 1000, ..Header::new(b'0', "usr/bin/tool") }, &text)
        .symlink("bin", "usr/bin")
        .hard_link("bin/tool2", "usr/bin/tool")
        .file("empty", b"")
        .file("etc/.wh.old", b"")
        .file("var/.wh..wh..opq", b"")
        .entry(Header { device: (1, 3), ..Header::new(b'3', "dev/null") }, &[])
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9999999")])
        .file("sparse", &[&b"1\n5000000\n3\n"[..], &[0; 500], b"abc"].concat())
        .finish()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

fn converted(blob: &[u8]) -> Result<(Converted, Vec<u8>), ConvertError> {
    let file = tempfile::tempfile().unwrap();
    let converted = convert(blob, &file, &Limits::default())?;
    Ok((converted, all_of(&file)))
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[track_caller]
fn is_refused(blob: &[u8], message: &str) {
    let error = converted(blob).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn the_root_hash_is_what_it_has_always_been() {
    let (converted, bytes) = converted(&sample()).unwrap();
    assert_eq!(converted.layer.root.to_string(), SAMPLE_ROOT);
    assert_eq!(bytes.len() as u64, converted.layer.length);
}

#[test]
fn compressions_change_the_blobs_digest_alone() {
    let archive = sample();
    let (plain, layer) = converted(&archive).unwrap();
    assert_eq!((plain.compression, plain.entries), (Compression::None, 9));
    assert_eq!((plain.diff_id, plain.blob_digest), (digest(&archive), digest(&archive)));
    assert_eq!((plain.uncompressed_bytes, plain.blob_bytes), (archive.len() as u64, archive.len() as u64));
    let (half, rest) = archive.split_at(archive.len() / 2);
    let skippable = [&[0x5A, 0x2A, 0x4D, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    for (blob, compression) in [
        (gzip(&archive), Compression::Gzip),
        ([gzip(half), gzip(b""), gzip(rest)].concat(), Compression::Gzip),
        (zstd(&archive), Compression::Zstd),
        ([zstd(half), skippable.clone(), zstd(rest)].concat(), Compression::Zstd),
        ([skippable, zstd(&archive)].concat(), Compression::Zstd),
    ] {
        let (other, bytes) = converted(&blob).unwrap();
        assert_eq!((other.compression, other.diff_id), (compression, plain.diff_id));
        assert_eq!((other.blob_digest, other.blob_bytes), (digest(&blob), blob.len() as u64));
        assert_eq!((other.layer, other.entries), (plain.layer, plain.entries));
        assert_eq!(other.uncompressed_bytes, plain.uncompressed_bytes);
        assert!(bytes == layer);
    }
}

#[test]
fn neither_threads_nor_pieces_show_in_the_layer() {
    /// Hands out a few bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);
    impl Read for Pieces<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.1).min(self.0.len());
            self.0.read(&mut bytes[..count])
        }
    }
    let archive = sample();
    let (first, layer) = converted(&archive).unwrap();
    for (threads, piece) in [(1, 1 << 20), (2, 1000), (3, 77), (7, 5000)] {
        let settings = Settings { threads: NonZeroUsize::new(threads).unwrap(), ..Settings::default() };
        let file = tempfile::tempfile().unwrap();
        let again = convert_with(Pieces(&archive, piece), &file, &Limits::default(), &settings).unwrap();
        assert_eq!(again, first);
        assert!(all_of(&file) == layer, "{threads} threads, {piece} bytes");
    }
}

#[test]
fn what_follows_the_archive_counts_for_its_digest_alone() {
    let mut archive = sample();
    let (first, layer) = converted(&archive).unwrap();
    archive.extend_from_slice(&[b'?'; 1_000_000]);
    for blob in [archive.clone(), gzip(&archive)] {
        let (longer, bytes) = converted(&blob).unwrap();
        assert_eq!(longer.diff_id, digest(&archive));
        assert_ne!(longer.diff_id, first.diff_id);
        assert!(bytes == layer);
    }
}

#[test]
fn broken_compression_is_an_error() {
    let archive = sample();
    for blob in [gzip(&archive), zstd(&archive)] {
        is_refused(&blob[..blob.len() - 1], "cannot decompress the layer's blob");
        is_refused(&blob[..blob.len() / 2], "cannot decompress the layer's blob");
        is_refused(
            &[&blob[..], b"garbage that is long enough"].concat(),
            "cannot decompress the layer's blob",
        );
    }
    // Frames of zstd need not have a check sum; there the diff id tells.
    let mut flipped = gzip(&archive);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    assert!(converted(&flipped).is_err());
}

#[test]
fn windows_of_zstd_are_bounded() {
    let frame = |log: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&sample()).unwrap();
        encoder.finish().unwrap()
    };
    for (log, window) in [(20, 1 << 20), (23, 8 << 20), (25, 32 << 20)] {
        assert_eq!(zstd_window(&frame(log)), Some(window));
        assert!(converted(&frame(log)).is_ok(), "{log}");
    }
    is_refused(&frame(26), "zstd: expected a window of at most 33554432 bytes, found 67108864");
    // Behind a first frame that is modest.
    is_refused(&[frame(20), frame(26)].concat(), "cannot decompress the layer's blob (Zstd)");
}

#[test]
fn bombs_are_refused_before_they_unfold() {
    let limits = Limits { uncompressed_bytes: 1 << 20, ..Limits::default() };
    let zeros = vec![0; 64 << 20];
    let archive = Archive::new().file("zeros", &zeros).finish();
    // Behind the end of the archive as well.
    for archive in [archive, zeros] {
        for blob in [gzip(&archive), zstd(&archive), archive.clone()] {
            let file = tempfile::tempfile().unwrap();
            let error = convert(&blob[..], &file, &limits).unwrap_err();
            assert_eq!(
                error.to_string(),
                "layer: expected at most 1048576 bytes of uncompressed archive, found more"
            );
            assert!(file.metadata().unwrap().len() < 4 << 20);
        }
    }
}

#[test]
fn a_blob_that_cannot_be_read_is_an_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let archive = sample();
    for blob in [archive.clone(), gzip(&archive), zstd(&archive)] {
        for length in [0, 100, blob.len() - 100] {
            let blob = blob[..length].chain(Broken);
            let error = convert(blob, &tempfile::tempfile().unwrap(), &Limits::default()).unwrap_err();
            assert_eq!(error.to_string(), "cannot read the layer's blob: broken");
        }
    }
}

#[test]
fn an_empty_layer_is_a_layer() {
    let (empty, _) = converted(&Archive::new().finish()).unwrap();
    let (nothing, _) = converted(b"").unwrap();
    assert_eq!((empty.entries, empty.layer), (0, nothing.layer));
}
