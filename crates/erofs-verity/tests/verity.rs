//! The hash tree against a straightforward second implementation, and against veritysetup where installed.

#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::fs;
use std::process::Command;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::layer::{Layer, LayerWriter, Settings};
use erofs_verity::tree::{Metadata, Tree};
use erofs_verity::verity::{OnCorruption, RootDigest, SALT, Superblock, VerityTarget};
use sha2::{Digest, Sha256};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + n / 4096 * 7) % 251).unwrap()).collect()
}

/// A layer with an empty tree of one block and a content that makes `blocks` blocks in all.
fn build(blocks: usize, step: usize) -> (Layer, tempfile::NamedTempFile) {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut writer = LayerWriter::new(out.as_file(), &Settings::default()).unwrap();
    writer.begin().unwrap();
    for piece in bytes((blocks - 2) * BLOCK_SIZE).chunks(step) {
        writer.write(piece).unwrap();
    }
    writer.end().unwrap();
    let layer = writer.finish(Tree::new(Metadata::default()).unwrap()).unwrap();
    assert_eq!(layer.data_blocks, blocks as u64);
    (layer, out)
}

/// Level by level, one block at a time, as the kernel's documentation describes it.
fn reference(data: &[u8]) -> ([u8; 32], Vec<u8>) {
    let hash = |block: &[u8]| -> [u8; 32] {
        let mut padded = block.to_vec();
        padded.resize(BLOCK_SIZE, 0);
        Sha256::new().chain_update(SALT).chain_update(padded).finalize().into()
    };
    let mut digests: Vec<[u8; 32]> = data.chunks(BLOCK_SIZE).map(hash).collect();
    let mut tree = Vec::new();
    while digests.len() > 1 {
        let blocks: Vec<Vec<u8>> = digests.chunks(128).map(<[_]>::concat).collect();
        digests = blocks.iter().map(|block| hash(block)).collect();
        let mut level = Vec::new();
        for mut block in blocks {
            block.resize(BLOCK_SIZE, 0);
            level.extend(block);
        }
        tree.splice(0..0, level);
    }
    (digests[0], tree)
}

#[test]
fn agrees_with_the_reference_at_every_level_border() {
    for blocks in [2, 127, 128, 129, 1024, 1025, 128 * 128, 128 * 128 + 1] {
        let (layer, file) = build(blocks, 1_000_003);
        let stored = fs::read(file.path()).unwrap();
        let (root, levels) = reference(&stored[..blocks * BLOCK_SIZE]);
        assert_eq!(layer.root, RootDigest(root), "{blocks} blocks");
        assert!(stored[(blocks + 1) * BLOCK_SIZE..] == levels, "{blocks} blocks");
    }
}

#[test]
fn pieces_do_not_matter() {
    let (whole, _) = build(300, usize::MAX);
    for step in [1000, 4096, 4097, 65536] {
        assert_eq!(build(300, step).0, whole);
    }
}

/// The largest has more leaf digests than stay in memory.
#[test]
fn veritysetup_accepts_superblock_and_tree() {
    if Command::new("veritysetup").arg("--version").output().is_err() {
        eprintln!("skipped: veritysetup (Debian package cryptsetup-bin) is not installed");
        return;
    }
    for blocks in [2, 128, 129, 70_000] {
        let (layer, file) = build(blocks, 1 << 20);
        let verify = |root: RootDigest| {
            Command::new("veritysetup")
                .arg(format!("--hash-offset={}", blocks * BLOCK_SIZE))
                .arg("verify")
                .args([file.path(), file.path()])
                .arg(root.to_string())
                .output()
                .unwrap()
        };
        let output = verify(layer.root);
        assert!(output.status.success(), "{blocks} blocks: {}", String::from_utf8_lossy(&output.stderr));
        let mut wrong = layer.root;
        wrong.0[0] ^= 1;
        assert!(!verify(wrong).status.success(), "{blocks} blocks: veritysetup accepted a wrong root");
    }
}

#[test]
fn target_reads_as_the_kernel_documents_it() {
    let root: RootDigest = "ab".repeat(32).parse().unwrap();
    let target = VerityTarget {
        device: "/dev/vda",
        data_blocks: 10,
        hash_start: 11,
        root,
        on_corruption: OnCorruption::Panic,
    };
    let (hash, salt) = ("ab".repeat(32), "00".repeat(32));
    assert_eq!(
        target.boot_argument("root"),
        format!(
            "root,,,ro,0 80 verity 1 /dev/vda /dev/vda 4096 4096 10 11 sha256 {hash} {salt} 1 panic_on_corruption"
        )
    );
    assert!("ab".repeat(31).parse::<RootDigest>().is_err());
    assert!("xy".repeat(32).parse::<RootDigest>().is_err());
}

proptest::proptest! {
    /// A superblock comes from the host: any bytes are read or refused, and what is read is what was written.
    #[test]
    fn any_superblock_is_read_or_refused(
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
        change in proptest::option::of((0..512usize, proptest::num::u8::ANY)),
        data_blocks in proptest::num::u64::ANY,
    ) {
        proptest::prop_assert!(Superblock::parse(&noise).is_err());
        let mut block = Superblock { data_blocks }.to_block();
        if let Some((place, value)) = change {
            block[place] = value;
        }
        if let Ok(superblock) = Superblock::parse(&block) {
            // Only the UUID, the number of blocks and padding may have been changed.
            let mut rewritten = superblock.to_block();
            for range in [16..32, 82..88, 120..512] {
                rewritten[range.clone()].copy_from_slice(&block[range]);
            }
            proptest::prop_assert!(rewritten == block);
        }
    }
}
