//! The SEV-SNP ID block of an image, in the form that the secure processor takes (AMD SEV-SNP firmware ABI
//! specification, section 8.18, tables "ID Block" and "ID Authentication Information Structure").

use attestation::id_block::{self, AmdPublicKey, IdAuth};
use evidence::report::Signature;
use igvm::IgvmDirectiveHeader;
use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::HvError;

/// Bytes of an ID block.
pub const ID_BLOCK_BYTES: usize = id_block::IdBlock::BYTES;
/// Bytes of its authentication.
pub const ID_AUTH_BYTES: usize = IdAuth::BYTES;

/// An ID block and what authenticates it.
#[derive(Debug, Clone)]
pub struct IdBlock {
    /// The block.
    pub block: [u8; ID_BLOCK_BYTES],
    /// Its signature, the key, and the author's signature of the key.
    pub auth: Box<[u8; ID_AUTH_BYTES]>,
    /// Whether there is an author's key.
    pub author_key: bool,
}

impl IdBlock {
    /// The ID block of an image for a guest that is launched with `policy`: the secure processor compares the
    /// two.
    ///
    /// # Errors
    /// When the directive is no ID block.
    pub fn new(directive: &IgvmDirectiveHeader, policy: u64) -> Result<Self, HvError> {
        let IgvmDirectiveHeader::SnpIdBlock {
            author_key_enabled,
            ld,
            family_id,
            image_id,
            version,
            guest_svn,
            id_key_algorithm,
            author_key_algorithm,
            id_key_signature,
            id_public_key,
            author_key_signature,
            author_public_key,
            ..
        } = directive
        else {
            return Err(HvError::Launch("image: expected an ID block, found another directive".into()));
        };
        let block = id_block::IdBlock {
            launch_digest: *ld,
            family_id: *family_id,
            image_id: *image_id,
            version: (*version).into(),
            guest_svn: (*guest_svn).into(),
            policy: policy.into(),
        };
        let mut made = IdAuth::new_zeroed();
        made.id_key_algorithm = (*id_key_algorithm).into();
        made.id_block_signature = signature(id_key_signature);
        fill_key(&mut made.id_key, id_public_key);
        let author_key = *author_key_enabled != 0;
        if author_key {
            made.author_key_algorithm = (*author_key_algorithm).into();
            made.id_key_signature = signature(author_key_signature);
            fill_key(&mut made.author_key, author_public_key);
        }
        let mut auth = Box::new([0; ID_AUTH_BYTES]);
        auth.copy_from_slice(made.as_bytes());
        Ok(Self { block: zerocopy::transmute!(block), auth, author_key })
    }
}

fn signature(of: &IGVM_VHS_SNP_ID_BLOCK_SIGNATURE) -> Signature {
    Signature { r: of.r_comp, s: of.s_comp, ..Signature::new_zeroed() }
}

/// The firmware has the key's coordinates right behind the curve's number; the IGVM file has a gap there.
fn fill_key(key: &mut AmdPublicKey, of: &IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY) {
    key.curve = of.curve.into();
    (key.x, key.y) = (of.qx, of.qy);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ID block of recognisable bytes.
    pub fn directive(author_key: bool) -> IgvmDirectiveHeader {
        let signature = |byte: u8| {
            let (r_comp, s_comp) = ([byte; 72], [byte + 1; 72]);
            Box::new(IGVM_VHS_SNP_ID_BLOCK_SIGNATURE { r_comp, s_comp })
        };
        let key = |byte: u8| {
            let (qx, qy) = ([byte; 72], [byte + 1; 72]);
            Box::new(IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY { curve: 2, reserved: 0, qx, qy })
        };
        IgvmDirectiveHeader::SnpIdBlock {
            compatibility_mask: 2,
            author_key_enabled: u8::from(author_key),
            reserved: [0; 3],
            ld: [0x11; 48],
            family_id: [0x22; 16],
            image_id: [0x33; 16],
            version: 1,
            guest_svn: 7,
            id_key_algorithm: 1,
            author_key_algorithm: 1,
            id_key_signature: signature(0x41),
            id_public_key: key(0x51),
            author_key_signature: signature(0x61),
            author_public_key: key(0x71),
        }
    }

    #[test]
    fn fields_are_where_the_firmware_wants_them() {
        let IdBlock { block, auth, author_key } = IdBlock::new(&directive(true), 0x3_0000).unwrap();
        assert!(author_key);
        assert_eq!(
            (block[0], block[47], block[48], block[64], block[80], block[84]),
            (0x11, 0x11, 0x22, 0x33, 1, 7)
        );
        assert_eq!(block[88..], 0x3_0000_u64.to_le_bytes());
        assert_eq!((auth[0], auth[4]), (1, 1));
        assert_eq!((auth[0x40], auth[0x40 + 72], auth[0x40 + 143], auth[0x40 + 144]), (0x41, 0x42, 0x42, 0));
        assert_eq!((auth[0x240], auth[0x244], auth[0x244 + 72], auth[0x244 + 144]), (2, 0x51, 0x52, 0));
        assert_eq!((auth[0x680], auth[0x880], auth[0x884]), (0x61, 2, 0x71));
    }

    #[test]
    fn without_an_author_key_its_fields_are_zeros() {
        let IdBlock { auth, author_key, .. } = IdBlock::new(&directive(false), 0).unwrap();
        assert!(!author_key && auth[4] == 0 && auth[0x680..].iter().all(|byte| *byte == 0));
    }
}
