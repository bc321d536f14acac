//! Where a tree's nodes are kept: fixed-size records and two byte arenas, all referring to each other by
//! 32-bit numbers.
//!
//! A record is written once and never moved or reused; what is removed is marked, and its bytes go on counting.
//! So a number that a caller still holds never means another node, and a tree's size is a plain sum.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// Refers to nothing.
pub(crate) const NONE: u32 = u32::MAX;

/// File type bits of `st_mode` (inode(7)).
pub(crate) mod file_type {
    pub(crate) const MASK: u16 = 0o170_000;
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHAR_DEVICE: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK_DEVICE: u16 = 0o060_000;
    pub(crate) const REGULAR: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
    pub(crate) const SOCKET: u16 = 0o140_000;
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) seconds: i64,
    /// Bytes of content or of a link's target; of a directory's entries once the tree is in order.
    pub(crate) size: u64,
    pub(crate) nanoseconds: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names of the node; of a directory 2 and its subdirectories.
    pub(crate) links: u32,
    /// `st_mode`; 0 once the node is removed.
    pub(crate) mode: u16,
    /// Whether a regular file is in chunks.
    pub(crate) chunked: bool,
    /// Attributes as erofs encodes them, in the blobs; or [`NONE`].
    pub(crate) xattrs: u32,
    /// By file type: first entry, first block, chunk starts or target in the blobs, encoded device number.
    pub(crate) data: u32,
    /// The entry that the node was first added as; [`NONE`] for the root.
    pub(crate) entry: u32,
}
const _: () = assert!(size_of::<Inode>() == 48);

impl Inode {
    pub(crate) fn file_type(&self) -> u16 {
        self.mode & file_type::MASK
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == file_type::DIRECTORY
    }
}

/// A name in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where the name lies in the names: its length in a byte, then itself.
    pub(crate) name: u32,
    pub(crate) parent: u32,
    /// [`NONE`] once the name is removed.
    pub(crate) node: u32,
    /// Next entry of the directory.
    pub(crate) next: u32,
}
const _: () = assert!(size_of::<Entry>() == 16);

/// Lossless on every platform with pointers of 32 bits or more.
pub(crate) fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The number of the next element of something that has `len`, if that can be numbered.
pub(crate) fn next_number(len: usize) -> Option<u32> {
    u32::try_from(len).ok().filter(|&number| number != NONE)
}

/// What an addition will take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    pub(crate) nodes: usize,
    pub(crate) entries: usize,
    pub(crate) name_bytes: usize,
    pub(crate) blob_bytes: usize,
}

/// Records, names, and the lookup of names.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) entries: Vec<Entry>,
    names: Vec<u8>,
    blobs: Vec<u8>,
    /// Entries by directory and name.
    index: HashTable<u32>,
    /// Attribute sets by their bytes: most nodes that have any share them with many others.
    xattr_sets: HashTable<u32>,
    /// Keyed by chance, so that no input can be made to collide; leaves no trace in the tree.
    hasher: RandomState,
}

impl Arena {
    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.inodes.len() * size_of::<Inode>()
            + self.entries.len() * size_of::<Entry>()
            + self.names.len()
            + self.blobs.len()
            + self.index.allocation_size()
            + self.xattr_sets.allocation_size()
    }

    /// Bytes in memory after an addition of `demand`; `None` if 32 bits could not number it.
    pub(crate) fn bytes_with(&self, demand: Demand) -> Option<usize> {
        next_number(self.inodes.len().checked_add(demand.nodes)?)?;
        next_number(self.entries.len().checked_add(demand.entries)?)?;
        next_number(self.names.len().checked_add(demand.name_bytes)?)?;
        next_number(self.blobs.len().checked_add(demand.blob_bytes)?)?;
        // A table that is full doubles.
        let growth = |table: &HashTable<u32>| {
            if table.len() == table.capacity() { table.allocation_size() } else { 0 }
        };
        Some(
            self.bytes()
                + demand.nodes * size_of::<Inode>()
                + demand.entries * (size_of::<Entry>() + growth(&self.index))
                + demand.name_bytes
                + demand.blob_bytes
                + growth(&self.xattr_sets),
        )
    }

    pub(crate) fn name(&self, entry: u32) -> &[u8] {
        let start = index(self.entries[index(entry)].name);
        let length = usize::from(self.names[start]);
        &self.names[start + 1..][..length]
    }

    /// The bytes of a blob that has its length in front.
    pub(crate) fn blob(&self, start: u32) -> &[u8] {
        let (length, rest) = self.blobs[index(start)..].split_at(size_of::<u32>());
        let length = length.try_into().map_or(0, u32::from_le_bytes);
        &rest[..index(length)]
    }

    /// Bytes that [`Self::put_blob`] takes for `length` bytes.
    pub(crate) fn blob_size(length: usize) -> usize {
        length + size_of::<u32>()
    }

    /// Keeps `bytes`; the caller has made sure that they can be numbered.
    pub(crate) fn put_blob(&mut self, bytes: &[u8]) -> u32 {
        let start = next_number(self.blobs.len()).unwrap_or(NONE);
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        self.blobs.extend_from_slice(&length.to_le_bytes());
        self.blobs.extend_from_slice(bytes);
        start
    }

    /// Binary logarithm of a chunk's blocks, and the first block of every chunk or [`NONE`].
    pub(crate) fn chunks(&self, blob: u32) -> (u32, impl Iterator<Item = u32>) {
        let mut numbers = self
            .blob(blob)
            .chunks_exact(size_of::<u32>())
            .map(|bytes| bytes.try_into().map_or(NONE, u32::from_le_bytes));
        (numbers.next().unwrap_or(0), numbers)
    }

    /// The blob with exactly these attributes, if there is one.
    pub(crate) fn find_xattr_set(&self, body: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(body);
        self.xattr_sets.find(hash, |&blob| self.blob(blob) == body).copied()
    }

    /// Keeps attributes that [`Self::find_xattr_set`] has not found.
    pub(crate) fn put_xattr_set(&mut self, body: &[u8]) -> u32 {
        let blob = self.put_blob(body);
        let Self { blobs, xattr_sets, hasher, .. } = self;
        let of = |start: u32| {
            let (length, rest) = blobs[index(start)..].split_at(size_of::<u32>());
            &rest[..length.try_into().map_or(0, |bytes| index(u32::from_le_bytes(bytes)))]
        };
        xattr_sets.insert_unique(hasher.hash_one(body), blob, |&other| hasher.hash_one(of(other)));
        blob
    }

    /// The entry `name` of directory `parent`.
    pub(crate) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one((parent, name));
        self.index.find(hash, |&entry| self.is(entry, parent, name)).copied()
    }

    fn is(&self, entry: u32, parent: u32, name: &[u8]) -> bool {
        self.entries[index(entry)].parent == parent && self.name(entry) == name
    }

    /// Adds an entry, in front of the directory's others; the caller has made sure that it can be numbered and
    /// that its name is free and of at most 255 bytes.
    pub(crate) fn put_entry(&mut self, parent: u32, name: &[u8], node: u32) -> u32 {
        let number = next_number(self.entries.len()).unwrap_or(NONE);
        let start = next_number(self.names.len()).unwrap_or(NONE);
        self.names.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.names.extend_from_slice(name);
        let first = &mut self.inodes[index(parent)].data;
        let next = std::mem::replace(first, number);
        self.entries.push(Entry { name: start, parent, node, next });
        let Self { entries, names, index: table, hasher, .. } = self;
        table.insert_unique(hasher.hash_one((parent, name)), number, |&other| {
            let Entry { name, parent, .. } = entries[index(other)];
            let length = usize::from(names[index(name)]);
            hasher.hash_one((parent, &names[index(name) + 1..][..length]))
        });
        number
    }

    /// Takes the name away; its record stays, marked.
    pub(crate) fn remove_entry(&mut self, entry: u32) {
        let parent = self.entries[index(entry)].parent;
        let hash = self.hasher.hash_one((parent, self.name(entry)));
        if let Ok(found) = self.index.find_entry(hash, |&other| other == entry) {
            found.remove();
        }
        self.entries[index(entry)].node = NONE;
    }

    /// The living entries of a directory, in no particular order.
    pub(crate) fn children(&self, directory: u32) -> impl Iterator<Item = u32> {
        let inode = &self.inodes[index(directory)];
        let first = if inode.is_directory() { inode.data } else { NONE };
        let follow = |entry: u32| (entry != NONE).then_some(entry);
        std::iter::successors(follow(first), move |&entry| follow(self.entries[index(entry)].next))
            .filter(|&entry| self.entries[index(entry)].node != NONE)
    }

    /// Sorts the directory's entries by name and forgets those that were removed.
    pub(crate) fn sort_children(&mut self, directory: u32, buffer: &mut Vec<u32>) {
        buffer.clear();
        buffer.extend(self.children(directory));
        buffer.sort_unstable_by(|&one, &other| self.name(one).cmp(self.name(other)));
        let mut next = NONE;
        for &entry in buffer.iter().rev() {
            self.entries[index(entry)].next = next;
            next = entry;
        }
        self.inodes[index(directory)].data = next;
    }

    /// Frees what only changes to the tree need.
    pub(crate) fn freeze(&mut self) {
        self.index = HashTable::new();
        self.xattr_sets = HashTable::new();
    }
}
