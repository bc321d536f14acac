//! Puts a signed SEV-SNP ID block into a finished image: the secure processor then launches nothing but what the owner
//! of the key has signed (AMD SEV-SNP firmware ABI specification, section 8.18).
//!
//! An ID block names one launch digest, so one backend and, under KVM, one number of virtual CPUs. It is no part of
//! what is measured.

use igvm::{IgvmDirectiveHeader, IgvmFile};
use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE, IgvmPlatformType};
use launch::image::{Image, ImageError, Platform};
use launch::reader::{self, Header};
use launch::snp::{self, Backend, vmsa};

use crate::BuildError;

/// Bytes of an ID block.
pub const BLOCK_BYTES: usize = 96;
/// Bytes of ID authentication information.
pub const AUTH_BYTES: usize = 4096;

/// Bytes of a number of a signature or a key: 576 bits.
const NUMBER_BYTES: usize = 72;
/// Where the parts of the ID block are; the launch digest is first.
const FAMILY_ID: usize = 48;
const IMAGE_ID: usize = 64;
const VERSION: usize = 80;
const GUEST_SVN: usize = 84;
const POLICY: usize = 88;
/// Where the parts of the authentication information are; the ID key's algorithm is first.
const AUTHOR_ALGORITHM: usize = 4;
const BLOCK_SIGNATURE: usize = 0x40;
const ID_KEY: usize = 0x240;
const ID_KEY_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;

/// The launch that an ID block allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Under KVM, with so many virtual CPUs.
    Kvm(u32),
    /// Under the Microsoft Hypervisor.
    Mshv,
}

/// `file` with an ID block and its authentication information, in the secure processor's form.
///
/// # Errors
/// When the image has no SEV-SNP part, or an ID block already, or when the block is for another policy or for a digest
/// that no launch of the image has. Signatures are not checked here.
pub fn attach(
    file: &[u8],
    block: &[u8; BLOCK_BYTES],
    auth: &[u8; AUTH_BYTES],
) -> Result<(Vec<u8>, Allowed), BuildError> {
    let mask = check_platforms(file)?;
    let image = Image::decode(file, Platform::Snp)?;
    let error = |expected, found: String| BuildError::IdBlock { expected, found };
    if image.id_block.is_some() {
        return Err(error("an image without one", "one".into()));
    }
    let policy = u64::from_le_bytes(part(block, POLICY));
    if image.guest_policy != Some(policy) {
        return Err(error("the policy of the image", format!("{policy:#x}")));
    }
    let allowed = allowed(&image, part(block, 0))?;

    let igvm = IgvmFile::new_from_binary(file, None).map_err(BuildError::Igvm)?;
    let mut directives = igvm.directives().to_vec();
    directives.push(directive(mask, block, auth));
    let (platforms, policies) = (igvm.platforms().to_vec(), igvm.initializations().to_vec());
    let igvm = IgvmFile::new(igvm::IgvmRevision::V1, platforms, policies, directives);
    let mut bytes = Vec::new();
    igvm.and_then(|file| file.serialize(&mut bytes)).map_err(BuildError::Igvm)?;
    Ok((bytes, allowed))
}

/// The SEV-SNP part's mask. Every part must be one that the checked decoder takes: the `igvm` crate, which reads the
/// file next, does not check all that it reads.
fn check_platforms(file: &[u8]) -> Result<u32, BuildError> {
    let mut snp = None;
    for header in reader::read(file).map_err(ImageError::from)? {
        let Header::Platform(platform) = header else { continue };
        let decoded = match platform.platform_type {
            IgvmPlatformType::NATIVE => Platform::Native,
            IgvmPlatformType::SEV_SNP => {
                snp = Some(platform.compatibility_mask);
                Platform::Snp
            }
            IgvmPlatformType::TDX => Platform::Tdx,
            other => {
                let expected = "an image for native, SEV-SNP and TDX machines";
                return Err(BuildError::IdBlock { expected, found: format!("one for {other:?}") });
            }
        };
        Image::decode(file, decoded)?;
    }
    let missing = || BuildError::IdBlock { expected: "an image with a SEV-SNP part", found: "none".into() };
    snp.ok_or_else(missing)
}

fn allowed(image: &Image, digest: [u8; 48]) -> Result<Allowed, BuildError> {
    let max_vcpus = image.config()?.max_vcpus;
    let digests = |backend, vcpus| {
        snp::digests(image, backend, vcpus, vmsa::RESET_RDX).into_iter().map(|digest| digest.0)
    };
    if digests(Backend::Mshv, 1).any(|mshv| mshv == digest) {
        return Ok(Allowed::Mshv);
    }
    let found = (1..=max_vcpus).zip(digests(Backend::Kvm, max_vcpus)).find(|(_, kvm)| *kvm == digest);
    found.map(|(vcpus, _)| Allowed::Kvm(vcpus)).ok_or_else(|| BuildError::IdBlock {
        expected: "a launch digest of the image",
        found: hex::encode(digest),
    })
}

fn directive(mask: u32, block: &[u8; BLOCK_BYTES], auth: &[u8; AUTH_BYTES]) -> IgvmDirectiveHeader {
    let author_key_algorithm = u32::from_le_bytes(part(auth, AUTHOR_ALGORITHM));
    IgvmDirectiveHeader::SnpIdBlock {
        compatibility_mask: mask,
        author_key_enabled: u8::from(author_key_algorithm != 0),
        reserved: [0; 3],
        ld: part(block, 0),
        family_id: part(block, FAMILY_ID),
        image_id: part(block, IMAGE_ID),
        version: u32::from_le_bytes(part(block, VERSION)),
        guest_svn: u32::from_le_bytes(part(block, GUEST_SVN)),
        id_key_algorithm: u32::from_le_bytes(part(auth, 0)),
        author_key_algorithm,
        id_key_signature: signature(auth, BLOCK_SIGNATURE),
        id_public_key: public_key(auth, ID_KEY),
        author_key_signature: signature(auth, ID_KEY_SIGNATURE),
        author_public_key: public_key(auth, AUTHOR_KEY),
    }
}

fn signature(auth: &[u8; AUTH_BYTES], at: usize) -> Box<IGVM_VHS_SNP_ID_BLOCK_SIGNATURE> {
    Box::new(IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
        r_comp: part(auth, at),
        s_comp: part(auth, at + NUMBER_BYTES),
    })
}

/// The firmware has the key's coordinates right behind the curve's number; the IGVM file has a gap there.
fn public_key(auth: &[u8; AUTH_BYTES], at: usize) -> Box<IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY> {
    let curve = u32::from_le_bytes(part(auth, at));
    let (qx, qy) = (part(auth, at + 4), part(auth, at + 4 + NUMBER_BYTES));
    Box::new(IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY { curve, reserved: 0, qx, qy })
}

/// The `N` bytes of a structure at `at`, which is one of the offsets above.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}
