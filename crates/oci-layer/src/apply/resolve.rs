//! From a path's components to a directory of the tree.
//!
//! Symbolic links of the same layer are followed, as containerd follows them below the directory that it
//! unpacks to: absolute targets and `..` end at the layer's root. A link to nothing leads to where its target
//! will be made. Other layers' links are not seen: a layer's bytes depend on its own archive alone.

use std::collections::VecDeque;

use erofs_verity::tree::{Kind, NodeId, Tree};

use super::is_whiteout;

/// Most links followed for one path, containerd's limit.
const MAX_LINKS: usize = 255;
/// Most components walked for one path, those of links included.
const MAX_STEPS: usize = 4096;

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Place {
    /// The last directory that exists.
    pub(super) directory: NodeId,
    /// Names below it that do not exist, or are whiteouts.
    pub(super) missing: Vec<Box<[u8]>>,
}

/// Why a path leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ResolveFault {
    /// A component is a file of another type.
    NotDirectory(String),
    /// Too many links, or a cycle of them.
    Links,
    /// Too many components.
    Steps,
}

/// Walks `components` from the root.
pub(super) fn resolve(tree: &Tree, components: &[&[u8]]) -> Result<Place, ResolveFault> {
    let mut place = Place { directory: Tree::ROOT, missing: Vec::new() };
    let mut rest: VecDeque<Box<[u8]>> = components.iter().map(|&name| name.into()).collect();
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = rest.pop_front() {
        steps += 1;
        if steps > MAX_STEPS {
            return Err(ResolveFault::Steps);
        }
        let Some(child) = place.step(tree, name)? else {
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(ResolveFault::Links);
        }
        if child.starts_with(b"/") {
            place = Place { directory: Tree::ROOT, missing: Vec::new() };
        }
        for name in child.rsplit(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            rest.push_front(name.into());
        }
    }
    Ok(place)
}

impl Place {
    /// Goes to `name`; the target, if that is a symbolic link.
    fn step(&mut self, tree: &Tree, name: Box<[u8]>) -> Result<Option<Vec<u8>>, ResolveFault> {
        if &*name == b".." {
            if self.missing.pop().is_none() {
                self.directory = tree.parent(self.directory);
            }
            return Ok(None);
        }
        if !self.missing.is_empty() {
            self.missing.push(name);
            return Ok(None);
        }
        match tree.child(self.directory, &name) {
            None => self.missing.push(name),
            Some(child) if tree.is_directory(child) => self.directory = child,
            Some(child) => match tree.kind(child) {
                Some(Kind::Symlink(target)) => return Ok(Some(target)),
                Some(kind) if is_whiteout(&kind) => self.missing.push(name),
                _ => return Err(ResolveFault::NotDirectory(tree.path(child))),
            },
        }
        Ok(None)
    }
}
