use boot_abi::{CONFIG_GPA, Config, DSDT_GPA, STUB_GPA};
use launch::image::{Page, PageKind, Start};
use launch::plan::Tee;
use launch::snp::vmsa;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;

fn page(gpa: u64, kind: PageKind, fill: u8) -> Page {
    Page { gpa, kind, data: vec![fill; 4096].into() }
}

fn set_byte(image: &mut Image, page: usize, at: usize, byte: u8) {
    let mut data = image.pages[page].data.to_vec();
    data[at] = byte;
    image.pages[page].data = data.into();
}

fn config_page(change: impl FnOnce(&mut Config)) -> Page {
    let mut config = Config { magic: Config::MAGIC, max_vcpus: 4, tee: 2, ..Config::new_zeroed() };
    set_command_line(&mut config, "quiet uvm.snp_policy=0x30000");
    change(&mut config);
    let mut data = config.as_bytes().to_vec();
    data.resize(4096, 0);
    Page { gpa: CONFIG_GPA, kind: PageKind::Measured, data: data.into() }
}

fn set_command_line(config: &mut Config, text: &str) {
    config.command_line.fill(0);
    config.command_line[..text.len()].copy_from_slice(text.as_bytes());
    config.command_line_bytes = u16::try_from(text.len()).unwrap();
}

fn image(change: impl FnOnce(&mut Image)) -> Image {
    let mut image = Image {
        platform: Platform::Snp,
        pages: vec![
            page(STUB_GPA, PageKind::Measured, 1),
            config_page(|_| ()),
            page(boot_abi::PARAMS_GPA, PageKind::Unmeasured, 0),
            page(0xC000_0000, PageKind::Shared, 5),
        ],
        parameters: Vec::new(),
        start: Start::Snp { gpa: boot_abi::VMSA_GPA, vmsa: Box::new(vmsa::base()) },
        guest_policy: Some(0x3_0000),
        id_block: None,
    };
    change(&mut image);
    image
}

fn side(image: &Image) -> Side<'_> {
    Side { image, profile: Some(Profile::ours(Tee::Snp, Backend::Kvm)), vcpus: 1 }
}

/// The differences of a changed image, whose measurement must differ if `measured`.
fn told(measured: bool, change: impl FnOnce(&mut Image)) -> Vec<Difference> {
    let (a, b) = (image(|_| ()), image(change));
    let found = compare(&side(&a), &side(&b)).unwrap();
    assert_eq!(!found.same_measurement(), measured, "{:?}", found.differences);
    found.differences
}

#[test]
fn equal_images_have_no_differences() {
    assert_eq!(told(false, |_| ()), []);
}

#[test]
fn a_page_of_other_content_is_shown_with_its_first_bytes() {
    let differences = told(true, |image| set_byte(image, 0, 0x123, 7));
    let [Difference::Bytes { gpa, role, differing: 1, first: 0x123, a, b }] = differences.as_slice() else {
        panic!("{differences:?}")
    };
    assert_eq!((gpa.as_str(), *role), ("0x100000", "boot stub"));
    assert!(a.starts_with("0101") && b.starts_with("0701"), "{a} {b}");
}

#[test]
fn kind_place_presence_and_order_of_pages() {
    let differences = told(true, |image| image.pages[0].kind = PageKind::Unmeasured);
    assert!(
        matches!(&differences[..], [Difference::Kind { a, b, .. }] if a == "measured" && b == "unmeasured")
    );
    let differences = told(true, |image| image.pages[0].gpa = STUB_GPA + 0x1000);
    assert!(
        matches!(&differences[..], [Difference::Moved { a, b, .. }] if a == "0x100000" && b == "0x101000")
    );
    let differences = told(true, |image| image.pages.push(page(DSDT_GPA, PageKind::Measured, 9)));
    assert!(matches!(&differences[..], [Difference::OnlyInB(run)] if run.role == "DSDT"));
    let differences = told(true, |image| image.pages.swap(0, 1));
    assert!(matches!(&differences[..], [Difference::Order { place: 0, .. }]), "{differences:?}");
}

#[test]
fn many_pages_are_counted_and_not_listed() {
    let kernel = |fill: u8| (0..40).map(move |n| page(0x100_0000 + n * 4096, PageKind::Measured, fill));
    let a = image(|image| image.pages.extend(kernel(1)));
    let b = image(|image| image.pages.extend(kernel(2)));
    let found = compare(&side(&a), &side(&b)).unwrap().differences;
    assert_eq!(found.iter().filter(|found| matches!(found, Difference::Bytes { .. })).count(), 16);
    assert_eq!(found.last(), Some(&Difference::MoreBytes { pages: 24 }));
}

#[test]
fn what_is_not_measured_is_told_and_called_so() {
    let differences = told(false, |image| set_byte(image, 3, 0, 1));
    assert_eq!(differences, [Difference::Shared { pages: 1 }]);
    assert!(differences[0].to_string().contains("not measured"));
}

#[test]
fn configuration_command_line_and_policy_in_words() {
    let differences = told(true, |image| {
        image.pages[1] = config_page(|config| {
            config.max_vcpus = 8;
            config.guest_policy = 0xB_0000;
            set_command_line(config, "quiet uvm.snp_policy=0xb0000 debug");
        });
        image.guest_policy = Some(0xB_0000);
    });
    let text = differences.iter().map(|found| format!("{found}\n")).collect::<String>();
    for line in [
        "guest policy: 0x30000 -> 0xb0000 +debug\n",
        "command line:\n    - uvm.snp_policy=0x30000\n    + uvm.snp_policy=0xb0000\n    + debug\n",
        "configuration max_vcpus: 4 -> 8\n",
        "configuration guest_policy: 0x0 -> 0xb0000\n",
        "page 0x142000 (configuration): ",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn registers_by_name() {
    let differences = told(true, |image| {
        if let Start::Snp { vmsa, .. } = &mut image.start {
            vmsa.rip = 0x10_0000;
            vmsa.cs.base = 4;
        }
    });
    let text: Vec<_> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["register cs.base: 0x0 -> 0x4", "register rip: 0x0 -> 0x100000"]);
}

#[test]
fn circumstances_of_one_image() {
    let image = image(|_| ());
    let a = side(&image);
    let b = Side { vcpus: 2, ..side(&image) };
    let found = compare(&a, &b).unwrap();
    assert!(!found.same_measurement());
    assert_eq!(found.differences[0].to_string(), "number of vCPUs: 1 -> 2");
    let b = Side { profile: Some(Profile::ours(Tee::Snp, Backend::Mshv)), ..side(&image) };
    let found = compare(&a, &b).unwrap();
    assert!(!found.same_measurement());
    assert_eq!(found.differences[0].to_string(), "backend: kvm -> mshv");
    let sim = Side { profile: Some(Profile::ours(Tee::Sim, Backend::Kvm)), ..side(&image) };
    assert!(matches!(compare(&a, &sim), Err(ProfileError::Tee { .. })));
}
