//! The CPUID page: the processor features that an SEV-SNP guest is told of (AMD SEV-SNP firmware ABI
//! specification, section 8.17.2.6, "CPUID page").
//!
//! A head of 16 bytes (number of functions, zeros), then 48 bytes for each function. The firmware compares the
//! page with the processor: where it disagrees, it refuses the page and shows what it would accept.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::abi::layout;
use super::super::pages::PAGE_BYTES;
use crate::hv::HvError;

/// Functions that fit.
pub const MAX_FUNCTIONS: usize = 64;

const LEAF_XSAVE: u32 = 0xD;
/// `XCR0` at the start: the x87 state.
const XCR0_X87: u64 = 1;
/// Bytes of an XSAVE area for the x87 and SSE state: what the size functions answer at the start.
const XSAVE_BYTES: u32 = 0x240;

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    count: u32,
    reserved1: u32,
    reserved2: u64,
}
layout!(Head, 16, count @ 0, reserved1 @ 4, reserved2 @ 8);

#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Function {
    eax_in: u32,
    ecx_in: u32,
    xcr0_in: u64,
    xss_in: u64,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    reserved: u64,
}
layout!(Function, 48, eax_in @ 0, ecx_in @ 4, xcr0_in @ 8, xss_in @ 16, eax @ 24, ebx @ 28, ecx @ 32, edx @ 36,
    reserved @ 40);

impl Function {
    fn of(entry: &kvm_cpuid_entry2) -> Self {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        let sizes = entry.function == LEAF_XSAVE && entry.index <= 1;
        Self {
            eax_in: entry.function,
            ecx_in: if indexed { entry.index } else { 0 },
            xcr0_in: if sizes { XCR0_X87 } else { 0 },
            xss_in: 0,
            eax: entry.eax,
            ebx: if sizes { XSAVE_BYTES } else { entry.ebx },
            ecx: entry.ecx,
            edx: entry.edx,
            reserved: 0,
        }
    }

    /// What the question is, apart from the answer.
    const fn question(&self) -> (u32, u32, u64, u64) {
        (self.eax_in, self.ecx_in, self.xcr0_in, self.xss_in)
    }
}

/// The page for a guest that is shown `cpuid`. Functions that answer zeros are left out: they are what a guest
/// assumes of functions that it does not find.
pub fn page(cpuid: &CpuId) -> Result<Vec<u8>, HvError> {
    let silent = |entry: &&kvm_cpuid_entry2| (entry.eax | entry.ebx | entry.ecx | entry.edx) == 0;
    let functions: Vec<Function> =
        cpuid.as_slice().iter().filter(|entry| !silent(entry)).map(Function::of).collect();
    if functions.len() > MAX_FUNCTIONS {
        let found = functions.len();
        let problem = format!("CPUID page: expected at most {MAX_FUNCTIONS} functions, found {found}");
        return Err(HvError::Launch(problem));
    }
    let count = u32::try_from(functions.len()).unwrap_or(u32::MAX);
    let mut page = Head { count, reserved1: 0, reserved2: 0 }.as_bytes().to_vec();
    functions.iter().for_each(|function| page.extend_from_slice(function.as_bytes()));
    page.resize(PAGE_BYTES, 0);
    Ok(page)
}

/// Checks what the firmware shows for a page that it has refused: the same questions, answered otherwise. A
/// page that is the same was not refused for its answers.
pub fn check_corrected(sent: &[u8], shown: &[u8]) -> Result<(), HvError> {
    let problem =
        |what: String| Err(HvError::Launch(format!("CPUID page that the firmware proposes: {what}")));
    let ((sent_count, sent), (shown_count, shown)) = (functions(sent)?, functions(shown)?);
    if sent_count != shown_count {
        return problem(format!("expected {sent_count} functions, found {shown_count}"));
    }
    for (sent, shown) in sent.iter().zip(&shown) {
        if sent.question() != shown.question() {
            let [expected, found] = [sent, shown].map(|of| format!("{:#x}/{}", of.eax_in, of.ecx_in));
            return problem(format!("expected function {expected}, found {found}"));
        }
    }
    if sent == shown {
        return problem("expected other answers, found the same".into());
    }
    Ok(())
}

fn functions(page: &[u8]) -> Result<(u32, Vec<Function>), HvError> {
    let malformed = || HvError::Launch("CPUID page: expected 4096 bytes with at most 64 functions".into());
    let (head, rest) = Head::read_from_prefix(page).map_err(|_| malformed())?;
    let count = usize::try_from(head.count).ok().filter(|count| *count <= MAX_FUNCTIONS);
    let bytes = count.and_then(|count| rest.get(..count * size_of::<Function>())).ok_or_else(malformed)?;
    let functions = bytes.chunks_exact(size_of::<Function>()).map(Function::read_from_bytes);
    Ok((head.count, functions.collect::<Result<_, _>>().map_err(|_| malformed())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx: 0x1234, ..Default::default() }
    }

    #[test]
    fn functions_are_where_the_specification_has_them() {
        let silent = kvm_cpuid_entry2 { function: 3, ..Default::default() };
        let cpuid = CpuId::from_entries(&[entry(1, 0, 7), silent, entry(0xD, 1, 9)]).unwrap();
        let page = page(&cpuid).unwrap();
        assert_eq!(page.len(), 4096);
        assert_eq!(page[..16], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((page[16], page[16 + 24], page[16 + 28], page[16 + 29]), (1, 7, 0x34, 0x12));
        let xsave = &page[64..112];
        assert_eq!((xsave[0], xsave[4], xsave[8], xsave[24]), (0xD, 1, 1, 9));
        assert_eq!(xsave[28..32], [0x40, 0x02, 0, 0]);
        assert!(page[112..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn too_many_functions_are_an_error_and_not_cut() {
        let entries: Vec<_> = (0..65).map(|index| entry(4, index, 1)).collect();
        assert!(page(&CpuId::from_entries(&entries[..64]).unwrap()).is_ok());
        let error = page(&CpuId::from_entries(&entries).unwrap()).unwrap_err().to_string();
        assert!(error.contains("expected at most 64 functions, found 65"), "{error}");
    }

    #[test]
    fn only_answers_may_be_corrected() {
        let sent = page(&CpuId::from_entries(&[entry(1, 0, 7), entry(7, 0, 9)]).unwrap()).unwrap();
        let changed = |at: usize| {
            let mut shown = sent.clone();
            shown[at] ^= 1;
            check_corrected(&sent, &shown).map_err(|error| error.to_string())
        };
        assert_eq!(changed(16 + 24), Ok(()));
        assert!(changed(16).unwrap_err().contains("expected function 0x1/0, found 0x0/0"));
        assert!(changed(0).unwrap_err().contains("expected 2 functions, found 3"));
        assert!(check_corrected(&sent, &sent).unwrap_err().to_string().contains("found the same"));
        let mut counted = sent.clone();
        counted[0] = 65;
        assert!(check_corrected(&sent, &counted).is_err());
    }
}
