//! A tree as a flat listing that can be compared: everything that a reader can see of it.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::collections::BTreeMap;

use erofs_verity::tree::{Data, Extent, Kind, Metadata, NodeId, Timestamp, Tree, Xattrs};

use crate::kept::Kept;

/// One name.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    metadata: Metadata,
    kind: Kind,
    content: Vec<u8>,
    /// The first path, in order, that names the same node.
    same_as: Vec<u8>,
}

impl Entry {
    /// Forgets what a reader that restores contents only cannot show.
    pub fn reduce_to_contents(&mut self) {
        self.metadata.xattrs = Xattrs::new();
        // The extracting program sets the owner last, which clears set-user-ID.
        self.metadata.permissions &= 0o1777;
        self.metadata.mtime = Timestamp::default();
        (self.metadata.uid, self.metadata.gid) = (0, 0);
        self.same_as.clear();
    }
}

/// Every name of `tree` by path.
pub fn list(tree: &Tree, contents: &Kept) -> BTreeMap<Vec<u8>, Entry> {
    let mut paths: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), Tree::ROOT)];
    let mut next = 0;
    while let Some((path, id)) = paths.get(next).cloned() {
        next += 1;
        for (name, child) in tree.entries(id) {
            paths.push(([&path[..], b"/", name].concat(), child));
        }
    }
    paths.sort();
    let mut first: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
    let entry = |(path, id): (Vec<u8>, NodeId)| {
        let mut kind = tree.kind(id).unwrap();
        let mut content = Vec::new();
        if let Kind::Regular { size, data } = &mut kind {
            let Data::Flat(extent) = std::mem::replace(data, Data::Flat(Extent::EMPTY)) else {
                panic!("a sparse file in a tree of whole ones")
            };
            if *size > 0 {
                content.clone_from(&contents.0[&extent.first_block]);
            }
        }
        let same_as = first.entry(id).or_insert_with(|| path.clone()).clone();
        (path, Entry { metadata: tree.metadata(id), kind, content, same_as })
    };
    paths.into_iter().map(entry).collect()
}

/// Panics with the first difference, not with everything.
pub fn assert_same(wanted: &BTreeMap<Vec<u8>, Entry>, found: &BTreeMap<Vec<u8>, Entry>) {
    for path in wanted.keys().chain(found.keys()) {
        let (one, other) = (wanted.get(path), found.get(path));
        if one != other {
            let shorten = |entry: Option<&Entry>| format!("{entry:?}").chars().take(600).collect::<String>();
            let path = String::from_utf8_lossy(path);
            panic!("{path}:\nexpected {}\nfound {}", shorten(one), shorten(other));
        }
    }
}
