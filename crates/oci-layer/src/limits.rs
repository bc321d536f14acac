//! What a conversion may take.

/// Bounds of one conversion. Exceeding one is an error that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in the uncompressed archive, and of file content in the image, which is more only for sparse
    /// files. Default: 64 GiB, several times the largest layers in use.
    pub uncompressed_bytes: u64,
    /// Entries in the archive. Default: 2 million. Layers of whole distributions have a few hundred thousand.
    pub entries: u64,
    /// Bytes of memory for the file tree, which grows with entries, names, link targets and attributes, and
    /// for the window of a zstd frame beyond 8 MiB. Default: 40 MiB; with it, a conversion stays below
    /// 64 MiB in all.
    pub memory: usize,
    /// Bytes in a path or the target of a link. Default: 4096, Linux's limit.
    pub path_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { uncompressed_bytes: 64 << 30, entries: 2_000_000, memory: 40 << 20, path_bytes: 4096 }
    }
}
