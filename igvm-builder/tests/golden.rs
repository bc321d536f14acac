//! Measurements against independent implementations, which are fed from the IGVM file's own directives: the `igvm`
//! crate for SEV-SNP and TDX, `sev-snp-measure` for SEV-SNP (recorded by `golden/record.py`), and the `sev` crate for
//! save areas.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod inputs;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use igvm::measurement::{generate_snp_measurement, generate_tdx_measurement};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader as Directive, IgvmFile, IsolationType};
use igvm_builder::{Layout, Recipe, build};
use inputs::{PRODUCTION, kernel, recipe, stub};
use launch::image::{Image, Platform};
use launch::plan::Tee;
use launch::snp::{self, Backend, vmsa};
use launch::tdx;
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType, VMSA};
use zerocopy::{FromBytes as _, IntoBytes as _};

const VCPUS: [u32; 4] = [1, 2, 4, 64];
const RESET_RIP: u64 = 0xFFFF_FFF0;
const SNP_MASK: u32 = 2;
const TDX_MASK: u32 = 4;

/// Two images with two policies each, and the second image's measured layout.
fn images() -> Vec<Vec<u8>> {
    let first = (kernel(40_000), stub(&[0xF4; 5000]));
    let second = (kernel(70_001), stub(&(0..=249).cycle().take(20_000).collect::<Vec<u8>>()));
    let mut files = Vec::new();
    for (kernel, stub) in [&first, &second] {
        for snp_policy in [0x3_0000, 0xB_0133] {
            files.push(build(kernel, stub, &Recipe { snp_policy, ..recipe(&PRODUCTION) }).unwrap().file);
        }
    }
    let measured = Recipe { layout: Layout::Measured, ..recipe(&[Tee::Snp]) };
    files.push(build(&second.0, &second.1, &measured).unwrap().file);
    files
}

/// A save area at reset as the `sev` crate makes it for QEMU, with this RDX.
fn reset_page(model: CpuType, rdx: Option<u64>) -> Vec<u8> {
    let areas = VMSA::new(RESET_RIP, model, VMMType::QEMU, None, GuestFeatures(1));
    let page = areas.pages(1).unwrap().remove(0);
    let mut vmsa = SevVmsa::read_from_bytes(&page).unwrap();
    if let Some(rdx) = rdx {
        vmsa.rdx = rdx;
    }
    vmsa.as_bytes().to_vec()
}

fn signature(model: CpuType) -> u64 {
    u64::try_from(model.sig()).unwrap()
}

/// What a save-area directive says, and the directives without it.
fn split_save_area(directives: &[Directive]) -> (Box<SevVmsa>, Vec<Directive>) {
    let is_save_area = |directive: &&Directive| matches!(directive, Directive::SnpVpContext { .. });
    let Some(Directive::SnpVpContext { vmsa, .. }) = directives.iter().find(is_save_area) else {
        panic!("expected a save area");
    };
    (vmsa.clone(), directives.iter().filter(|directive| !is_save_area(directive)).cloned().collect())
}

/// The directives as KVM would follow them: save areas last, where KVM says that they are.
fn as_kvm(directives: &[Directive], vcpus: u32, reset: &[u8]) -> Vec<Directive> {
    let (first, mut directives) = split_save_area(directives);
    let others = Box::new(SevVmsa::read_from_bytes(reset).unwrap());
    for index in 0..u16::try_from(vcpus).unwrap() {
        directives.push(Directive::SnpVpContext {
            gpa: 0xFFFF_FFFF_F000,
            compatibility_mask: SNP_MASK,
            vp_index: index,
            vmsa: if index == 0 { first.clone() } else { others.clone() },
        });
    }
    directives
}

/// The directives by address, as the Microsoft Hypervisor's loader follows them.
fn as_mshv(directives: &[Directive]) -> Vec<Directive> {
    let mut directives = directives.to_vec();
    directives.sort_by_key(|directive| match directive {
        Directive::PageData { gpa, .. } | Directive::SnpVpContext { gpa, .. } => *gpa,
        Directive::ParameterInsert(insert) => insert.gpa,
        _ => 0,
    });
    directives
}

#[test]
fn kvm_digests_are_those_of_the_igvm_crate() {
    let models = [(CpuType::EpycMilan, Some(vmsa::RESET_RDX)), (CpuType::EpycGenoa, None)];
    for file in images() {
        let parsed = IgvmFile::new_from_binary(&file, Some(IsolationType::Snp)).unwrap();
        let image = Image::decode(&file, Platform::Snp).unwrap();
        for (model, rdx) in models {
            let reset = reset_page(model, rdx);
            let ours = snp::digests(&image, Backend::Kvm, 64, rdx.unwrap_or(signature(model)));
            for vcpus in VCPUS {
                let directives = as_kvm(parsed.directives(), vcpus, &reset);
                let igvm = generate_snp_measurement(parsed.initializations(), &directives, SNP_MASK).unwrap();
                assert_eq!(ours[vcpus as usize - 1].0, igvm, "{vcpus} virtual CPUs");
            }
        }
    }
}

#[test]
fn mshv_digests_are_those_of_the_igvm_crate() {
    for file in images() {
        let parsed = IgvmFile::new_from_binary(&file, Some(IsolationType::Snp)).unwrap();
        let directives = as_mshv(parsed.directives());
        let igvm = generate_snp_measurement(parsed.initializations(), &directives, SNP_MASK).unwrap();
        let image = Image::decode(&file, Platform::Snp).unwrap();
        let ours = snp::digests(&image, Backend::Mshv, 64, vmsa::RESET_RDX);
        for vcpus in VCPUS {
            assert_eq!(ours[vcpus as usize - 1].0, igvm, "{vcpus} virtual CPUs");
        }
    }
}

/// What `golden/record.py` has written of one image.
#[derive(serde::Deserialize)]
struct Recorded {
    /// By number of virtual CPUs.
    kvm: BTreeMap<u32, String>,
    /// The same on a processor model whose signature virtual CPUs find in RDX.
    kvm_epyc_milan: BTreeMap<u32, String>,
    mshv: String,
}

#[test]
fn snp_digests_are_those_that_sev_snp_measure_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let recorded = fs::read(folder.join("digests.json")).unwrap();
    let recorded: BTreeMap<String, Recorded> = serde_json::from_slice(&recorded).unwrap();
    assert_eq!(recorded.len(), 4);
    for (name, recorded) in recorded {
        let image = Image::decode(&fs::read(folder.join(&name)).unwrap(), Platform::Snp).unwrap();
        let digests = |backend, rdx| snp::digests(&image, backend, 64, rdx);
        let kvm = digests(Backend::Kvm, vmsa::RESET_RDX);
        let milan = digests(Backend::Kvm, signature(CpuType::EpycMilan));
        for (ours, recorded) in [(kvm, &recorded.kvm), (milan, &recorded.kvm_epyc_milan)] {
            assert_eq!(recorded.keys().copied().collect::<Vec<_>>(), VCPUS);
            for (vcpus, digest) in recorded {
                assert_eq!(ours[*vcpus as usize - 1].to_string(), *digest, "{name}, {vcpus} virtual CPUs");
            }
        }
        assert_eq!(digests(Backend::Mshv, vmsa::RESET_RDX)[0].to_string(), recorded.mshv, "{name}");
    }
}

#[test]
fn every_matrix_cell_has_its_own_digest() {
    let mut seen = std::collections::HashSet::new();
    for file in images() {
        let image = Image::decode(&file, Platform::Snp).unwrap();
        let kvm = snp::digests(&image, Backend::Kvm, 64, vmsa::RESET_RDX);
        let mshv = snp::digests(&image, Backend::Mshv, 1, vmsa::RESET_RDX);
        assert!(kvm.into_iter().chain(mshv).all(|digest| seen.insert(digest)));
    }
    assert_eq!(seen.len(), 5 * 65);
}

#[test]
fn mrtd_is_that_of_the_igvm_crate() {
    let mut found = 0;
    for file in images() {
        let Ok(image) = Image::decode(&file, Platform::Tdx) else { continue };
        let parsed = IgvmFile::new_from_binary(&file, Some(IsolationType::Tdx)).unwrap();
        let igvm = generate_tdx_measurement(parsed.directives(), TDX_MASK).unwrap();
        assert_eq!(tdx::mrtd(&image).0, igvm);
        found += 1;
    }
    assert_eq!(found, 4, "the measured layout alone has no TDX part");
}

#[test]
fn save_areas_at_reset_are_those_of_the_sev_crate() {
    let models =
        [CpuType::Epyc, CpuType::EpycRome, CpuType::EpycMilan, CpuType::EpycGenoa, CpuType::EpycTurin];
    for model in models {
        let ours = vmsa::page(&vmsa::reset(signature(model)));
        assert_eq!(ours[..], reset_page(model, None), "{model:?}");
    }
}
