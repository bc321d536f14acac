use evidence::report::Report;
use evidence::sim::Answer;
use igvm::IgvmDirectiveHeader;
use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY, IGVM_VHS_SNP_ID_BLOCK_SIGNATURE};
use launch::image::{Platform, Start};
use launch::plan::{HostData, Tee};
use p384::ecdsa::SigningKey;

use super::*;

const POLICY: u64 = 0x3_0000;

fn image(id_block: Option<IgvmDirectiveHeader>) -> Image {
    Image {
        platform: Platform::Snp,
        pages: Vec::new(),
        parameters: Vec::new(),
        start: Start::Reset,
        guest_policy: Some(POLICY),
        id_block: id_block.map(Box::new),
    }
}

fn measurement() -> Measurement {
    Measurement { tee: Tee::Sim, digest: LaunchDigest([1; 48]), host_data: HostData([2; 32]) }
}

fn device(image: &Image) -> ReportDevice {
    ReportDevice::new(image, &measurement()).unwrap()
}

fn request(device: &mut ReportDevice, words: &[u32]) -> u32 {
    device.write(PORT_CONTROL, COMMAND_RESET);
    words.iter().for_each(|word| device.write(PORT_DATA, *word));
    device.read(PORT_CONTROL)
}

fn read(device: &mut ReportDevice, length: u32) -> Vec<u8> {
    let words = (0..length.div_ceil(4)).map(|_| device.read(PORT_DATA).to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(usize::try_from(length).unwrap());
    bytes
}

fn report(device: &mut ReportDevice) -> Report {
    let words: Vec<u32> = (0..16).collect();
    let length = request(device, &words);
    let bytes = read(device, length);
    Report::parse(Answer::parse(&bytes).unwrap().report).unwrap().clone()
}

/// An ID block for launch digest `digest` and [`POLICY`], as an IGVM file has it.
fn id_block(digest: [u8; 48], author: bool) -> IgvmDirectiveHeader {
    let key = |byte| SigningKey::from_slice(&[byte; 48]).unwrap();
    let (id_key, author_key) = (key(3), author.then(|| key(4)));
    let block = IdBlock::new(digest, POLICY, 7, [8; 16], [9; 16]);
    let auth = IdAuth::sign(&block, &id_key, author_key.as_ref()).unwrap();
    let signature = |of: &evidence::report::Signature| {
        Box::new(IGVM_VHS_SNP_ID_BLOCK_SIGNATURE { r_comp: of.r, s_comp: of.s })
    };
    let key = |of: &id_block::AmdPublicKey| {
        let (curve, reserved) = (of.curve.get(), 0);
        Box::new(IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY { curve, reserved, qx: of.x, qy: of.y })
    };
    IgvmDirectiveHeader::SnpIdBlock {
        compatibility_mask: 2,
        author_key_enabled: u8::from(author),
        reserved: [0; 3],
        ld: digest,
        family_id: [8; 16],
        image_id: [9; 16],
        version: 1,
        guest_svn: 7,
        id_key_algorithm: 1,
        author_key_algorithm: u32::from(author),
        id_key_signature: signature(&auth.id_block_signature),
        id_public_key: key(&auth.id_key),
        author_key_signature: signature(&auth.id_key_signature),
        author_public_key: key(&auth.author_key),
    }
}

#[test]
fn a_report_says_how_the_guest_was_launched() {
    let mut device = device(&image(None));
    for _ in 0..2 {
        let report = report(&mut device);
        assert_eq!((report.measurement, report.host_data), ([1; 48], [2; 32]));
        assert_eq!(report.report_data[60..], 15u32.to_le_bytes());
        assert_eq!(report.policy(), GuestPolicy(POLICY));
        assert_eq!(report.id_key_digest, [0; 48]);
        assert_eq!(device.read(PORT_DATA), 0);
    }
}

#[test]
fn incomplete_overlong_and_unknown_requests_are_refused() {
    let mut device = device(&image(None));
    assert_eq!(device.read(PORT_CONTROL), 0);
    assert_eq!(request(&mut device, &[0; 15]), 0);
    assert_eq!(request(&mut device, &[0; 17]), 0);
    device.write(PORT_CONTROL, COMMAND_RESET);
    device.write(PORT_CONTROL, 2);
    (0..16).for_each(|word| device.write(PORT_DATA, word));
    assert_eq!(device.read(PORT_CONTROL), 0);
    assert_eq!(device.read(PORT_DATA), 0);
    assert_ne!(request(&mut device, &[0; 16]), 0);
}

#[test]
fn an_id_block_names_the_guest_and_its_signers() {
    let mut reports =
        [false, true].map(|author| report(&mut device(&image(Some(id_block([1; 48], author))))));
    for report in &reports {
        assert_eq!((report.guest_svn.get(), report.family_id, report.image_id), (7, [8; 16], [9; 16]));
        assert_ne!(report.id_key_digest, [0; 48]);
    }
    let [without, with] = &mut reports;
    assert_eq!(without.author_key_digest, [0; 48]);
    assert_ne!(with.author_key_digest, [0; 48]);
}

#[test]
fn id_blocks_of_others_are_refused() {
    let refusal = |id_block| ReportDevice::new(&image(Some(id_block)), &measurement()).err();
    assert!(matches!(refusal(id_block([5; 48], false)), Some(SimError::OtherLaunch { .. })));
    let mut forged = id_block([1; 48], true);
    if let IgvmDirectiveHeader::SnpIdBlock { guest_svn, .. } = &mut forged {
        *guest_svn += 1;
    }
    assert!(matches!(refusal(forged), Some(SimError::IdBlock(_))));
    let image = Image { guest_policy: Some(POLICY | 1 << 19), ..image(Some(id_block([1; 48], false))) };
    assert!(matches!(ReportDevice::new(&image, &measurement()), Err(SimError::IdBlock(_))));
}
