//! Contents of a tree that was read from a directory, in memory.
#![allow(clippy::unwrap_used, reason = "what fails in a helper has failed the test")]

use std::collections::BTreeMap;
use std::io::Read;

use erofs_verity::source::dir::{ContentError, Contents};
use erofs_verity::tree::{Data, Extent};

/// Contents by the block that the tree names.
#[derive(Default)]
pub struct Kept(pub BTreeMap<u32, Vec<u8>>);

impl Contents for Kept {
    fn take(&mut self, file: &mut dyn Read, _size: u64) -> Result<Data, ContentError> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(ContentError::Read)?;
        let blocks = u32::try_from(bytes.len().div_ceil(4096)).unwrap();
        let first_block = 1 + u32::try_from(self.0.len()).unwrap();
        self.0.insert(first_block, bytes);
        Ok(Data::Flat(Extent { first_block, blocks }))
    }
}
