//! The hash tree against a straightforward second implementation, and against veritysetup where installed.

#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::io::Write;
use std::process::Command;

use erofs_verity::BLOCK_SIZE;
use erofs_verity::verity::{
    HashTree, HashTreeBuilder, OnCorruption, RootDigest, SALT, Superblock, VerityTarget,
};
use sha2::{Digest, Sha256};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + n / 4096 * 7) % 251).unwrap()).collect()
}

fn build(data: &[u8], step: usize) -> HashTree {
    let mut builder = HashTreeBuilder::default();
    data.chunks(step).for_each(|piece| builder.update(piece));
    builder.finish()
}

fn tree_bytes(tree: &HashTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes).unwrap();
    bytes
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
    for blocks in [1, 2, 127, 128, 129, 1024, 1025, 128 * 128, 128 * 128 + 1] {
        let data = bytes(blocks * BLOCK_SIZE - usize::from(blocks > 2));
        let tree = build(&data, 1_000_003);
        let (root, levels) = reference(&data);
        assert_eq!(tree.root(), RootDigest(root), "{blocks} blocks");
        assert_eq!(tree.data_blocks(), blocks as u64);
        assert_eq!(tree.size(), levels.len() as u64);
        assert!(tree_bytes(&tree) == levels, "{blocks} blocks");
    }
}

#[test]
fn pieces_do_not_matter() {
    let data = bytes(300 * BLOCK_SIZE);
    let whole = build(&data, data.len());
    for step in [1000, 4096, 4097, 65536] {
        assert_eq!(build(&data, step).root(), whole.root());
    }
}

#[test]
fn veritysetup_accepts_superblock_and_tree() {
    if Command::new("veritysetup").arg("--version").output().is_err() {
        eprintln!("skipped: veritysetup (Debian package cryptsetup-bin) is not installed");
        return;
    }
    for blocks in [1u64, 2, 128, 129, 20_000] {
        let data = bytes(usize::try_from(blocks).unwrap() * BLOCK_SIZE);
        let tree = build(&data, data.len());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for part in [&data, &Superblock { data_blocks: blocks }.to_block(), &tree_bytes(&tree)] {
            file.write_all(part).unwrap();
        }
        let verify = |root: RootDigest| {
            Command::new("veritysetup")
                .arg(format!("--hash-offset={}", data.len()))
                .arg("verify")
                .args([file.path(), file.path()])
                .arg(root.to_string())
                .output()
                .unwrap()
        };
        let output = verify(tree.root());
        assert!(output.status.success(), "{blocks} blocks: {}", String::from_utf8_lossy(&output.stderr));
        let mut wrong = tree.root();
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
