//! What an entry's path names.
//!
//! Paths are taken from the layer's root, absolute ones too: builders write them (ko does), and a tree in
//! memory has nothing outside to reach. `..` is resolved in the text, as containerd does; a path that would
//! rise above the root is refused.

/// Prefix of names that hide what lower layers have under the rest of the name.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Name that hides everything lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'p> {
    /// The layer's root directory.
    Root,
    /// A name in a directory.
    Name {
        /// Components of the directory's path.
        directory: Vec<&'p [u8]>,
        /// Last component.
        name: &'p [u8],
    },
    /// A name in a directory that lower layers are not to show.
    Whiteout {
        /// Components of the directory's path.
        directory: Vec<&'p [u8]>,
        /// The name.
        name: &'p [u8],
    },
    /// A directory of which lower layers are to show nothing.
    Opaque {
        /// Components of its path.
        directory: Vec<&'p [u8]>,
    },
    /// Something that aufs kept for itself, and that is no part of a layer.
    Aufs,
}

/// Why a path names nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PathFault {
    /// `..` above the root.
    AboveRoot,
    /// A whiteout of nothing, of `.` or of `..`.
    Whiteout,
    /// A directory whose name is one of a whiteout.
    BelowWhiteout,
}

impl PathFault {
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Self::AboveRoot => "a path inside the layer",
            Self::Whiteout => "a name behind .wh. other than . and ..",
            Self::BelowWhiteout => "no directory whose name begins with .wh.",
        }
    }
}

/// The components of `path` with `.`, `..` and empty ones resolved.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathFault> {
    let mut components = Vec::new();
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or(PathFault::AboveRoot)?;
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// What `path` names in a layer.
pub(super) fn target(path: &[u8]) -> Result<Target<'_>, PathFault> {
    let mut directory = components(path)?;
    let Some(name) = directory.pop() else {
        return Ok(Target::Root);
    };
    if directory.iter().any(|name| name.starts_with(AUFS)) {
        return Ok(Target::Aufs);
    }
    if directory.iter().any(|name| name.starts_with(WHITEOUT)) {
        return Err(PathFault::BelowWhiteout);
    }
    if name == OPAQUE {
        return Ok(Target::Opaque { directory });
    }
    if name.starts_with(AUFS) {
        return Ok(Target::Aufs);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Target::Name { directory, name }),
        Some(b"" | b"." | b"..") => Err(PathFault::Whiteout),
        Some(name) => Ok(Target::Whiteout { directory, name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_from_the_root() {
        for path in
            [&b"a/b"[..], b"./a/b", b"/a/b", b"//a//./b/", b"x/../a/b", b"a/x/../b/.", b"/x/y/../../a/b"]
        {
            let expected = Target::Name { directory: vec![b"a"], name: b"b" };
            assert_eq!(target(path), Ok(expected), "{}", path.escape_ascii());
        }
        for path in [&b""[..], b".", b"./", b"/", b"a/.."] {
            assert_eq!(target(path), Ok(Target::Root), "{}", path.escape_ascii());
        }
        for path in [&b".."[..], b"../a", b"/../a", b"a/../../b", b"a/../.."] {
            assert_eq!(target(path), Err(PathFault::AboveRoot), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn reserved_names_are_told_apart() {
        let a = || vec![&b"a"[..]];
        for (path, expected) in [
            (&b"a/.wh.b"[..], Ok(Target::Whiteout { directory: a(), name: b"b" })),
            (b"a/.wh..b", Ok(Target::Whiteout { directory: a(), name: b".b" })),
            (b"a/.wh..wh..opq", Ok(Target::Opaque { directory: a() })),
            (b".wh..wh..opq", Ok(Target::Opaque { directory: vec![] })),
            (b".wh..wh.plnk", Ok(Target::Aufs)),
            (b".wh..wh.plnk/17.42", Ok(Target::Aufs)),
            (b"a/.wh..wh.aufs", Ok(Target::Aufs)),
            (b"a/.wh", Ok(Target::Name { directory: a(), name: b".wh" })),
            (b"a/.wh.", Err(PathFault::Whiteout)),
            (b"a/.wh..", Err(PathFault::Whiteout)),
            (b"a/.wh...", Err(PathFault::Whiteout)),
            (b"a/.wh.b/c", Err(PathFault::BelowWhiteout)),
        ] {
            assert_eq!(target(path), expected, "{}", path.escape_ascii());
        }
    }
}
