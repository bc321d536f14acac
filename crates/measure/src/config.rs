//! The boot stub's measured configuration, field by field.

use boot_abi::{Config, Tee};
use launch::image::Image;
use serde::Serialize;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value, as people read it.
    pub value: String,
}

/// The configuration of an image; none if the image measures no such page, or one of another version.
#[must_use]
pub fn read(image: &Image) -> Option<Config> {
    image.config().ok()
}

/// The command line; bytes that are no text are replaced.
#[must_use]
pub fn command_line(config: &Config) -> String {
    let length = usize::from(config.command_line_bytes).min(config.command_line.len());
    String::from_utf8_lossy(&config.command_line[..length]).into_owned()
}

/// The isolation that the image is made for, in a word.
#[must_use]
pub fn tee(config: &Config) -> String {
    let known = Tee::from_number(config.tee).map(|tee| match tee {
        Tee::None => "none",
        Tee::Sim => "sim",
        Tee::Snp => "snp",
        Tee::Tdx => "tdx",
    });
    known.map_or_else(|| format!("unknown ({})", config.tee), Into::into)
}

/// Every field but the command line, in the order of the page.
#[must_use]
pub fn fields(config: &Config) -> Vec<Field> {
    let field = |name: &str, value: String| Field { name: name.into(), value };
    let mut fields = vec![
        field("kernel_sha256", hex::encode(config.kernel_sha256)),
        field("kernel_bytes", config.kernel_bytes.to_string()),
        field("window_gpa", format!("{:#x}", config.window_gpa)),
        field("max_vcpus", config.max_vcpus.to_string()),
        field("dsdt_bytes", config.dsdt_bytes.to_string()),
        field("ioapic_gpa", format!("{:#x}", config.ioapic_gpa)),
        field("sleep_port", format!("{:#x}", config.sleep_port)),
        field("reset_port", format!("{:#x}", config.reset_port)),
        field("stub_port", format!("{:#x}", config.stub_port)),
        field("kernel_setup_bytes", config.kernel_setup_bytes.to_string()),
        field("tee", tee(config)),
        field("guest_policy", format!("{:#x}", config.guest_policy)),
    ];
    for (index, range) in config.loaded.iter().enumerate().filter(|(_, range)| range.end != 0) {
        fields.push(field(&format!("loaded[{index}]"), format!("{:#x}..{:#x}", range.base, range.end)));
    }
    fields
}
