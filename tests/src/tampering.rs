//! Images as a hostile host would change them.

use anyhow::{Result, ensure};
use boot_abi::{PARAMS_GPA, PARAMS_MEMORY_MAP, PARAMS_VP_COUNT};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmRevision};
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType};

/// A run of RAM as a memory map has it: first page, number of pages.
pub type Pages = (u64, u64);

/// The image with a parameter page of the host's choice: this number of processors, this memory map. As many entries are written as the page holds; where there is room, an entry
/// of zeros ends them.
///
/// # Errors
/// When the image is none, or has no parameter page.
pub fn with_parameters(image: &[u8], vcpus: u32, map: &[Pages]) -> Result<Vec<u8>> {
    let mut page = vec![0; 4096];
    page[PARAMS_VP_COUNT..PARAMS_VP_COUNT + 4].copy_from_slice(&vcpus.to_le_bytes());
    for (slot, (first, pages)) in page[PARAMS_MEMORY_MAP..].chunks_exact_mut(24).zip(map) {
        slot[..8].copy_from_slice(&first.to_le_bytes());
        slot[8..16].copy_from_slice(&pages.to_le_bytes());
    }
    let file = IgvmFile::new_from_binary(image, None)?;
    let mut directives = Vec::new();
    let mut inserted = 0;
    for directive in file.directives() {
        match directive {
            IgvmDirectiveHeader::ParameterArea { .. }
            | IgvmDirectiveHeader::VpCount(_)
            | IgvmDirectiveHeader::MemoryMap(_) => {}
            IgvmDirectiveHeader::ParameterInsert(insert) => {
                ensure!(
                    insert.gpa == PARAMS_GPA,
                    "expected parameters at {PARAMS_GPA:#x}, found {:#x}",
                    insert.gpa
                );
                inserted += 1;
                directives.push(IgvmDirectiveHeader::PageData {
                    gpa: insert.gpa,
                    compatibility_mask: insert.compatibility_mask,
                    flags: IgvmPageDataFlags::new().with_unmeasured(true),
                    data_type: IgvmPageDataType::NORMAL,
                    data: page.clone(),
                });
            }
            other => directives.push(other.clone()),
        }
    }
    ensure!(inserted > 0, "expected a parameter page, found none");
    let platforms = file.platforms().to_vec();
    let file = IgvmFile::new(IgvmRevision::V1, platforms, file.initializations().to_vec(), directives)?;
    let mut bytes = Vec::new();
    file.serialize(&mut bytes)?;
    Ok(bytes)
}
