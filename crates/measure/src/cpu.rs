//! Processor models, for monitors that leave RDX of the other virtual CPUs at its reset value: the processor's
//! signature (CPUID leaf 1, EAX; AMD publication 25481), which is then measured.
//!
//! Our own monitor sets RDX to 0, so that the digest does not depend on the host's processor.

/// Names as QEMU has them, without a version suffix, with family, model and stepping.
const MODELS: [(&str, [u32; 3]); 5] = [
    ("EPYC", [23, 1, 2]),
    ("EPYC-Rome", [23, 49, 0]),
    ("EPYC-Milan", [25, 1, 1]),
    ("EPYC-Genoa", [25, 17, 0]),
    ("EPYC-Turin", [26, 0, 0]),
];

/// A processor model, which only matters to monitors that leave RDX at reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name, or its signature in hexadecimal.
    pub name: String,
    /// What RDX holds at reset.
    pub signature: u32,
}

/// Why a text names no processor model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("processor model: expected {known}, or a signature such as 0xa00f11, found {0:?}", known = names())]
pub struct UnknownModel(String);

impl std::str::FromStr for Model {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        let unknown = || UnknownModel(text.chars().take(40).collect());
        if let Some(digits) = text.strip_prefix("0x") {
            let signature = u32::from_str_radix(digits, 16).map_err(|_| unknown())?;
            return Ok(Self { name: format!("{signature:#x}"), signature });
        }
        let known = all().find(|model| model.name.eq_ignore_ascii_case(without_version(text)));
        known.ok_or_else(unknown)
    }
}

/// Every model that has a name, oldest first.
pub fn all() -> impl Iterator<Item = Model> {
    MODELS.into_iter().map(|(name, numbers)| Model { name: name.into(), signature: signature(numbers) })
}

/// QEMU's versions of a model (`EPYC-Milan-v2`) differ in features, not in the signature.
fn without_version(name: &str) -> &str {
    match name.rsplit_once("-v") {
        Some((model, version)) if version.bytes().all(|byte| byte.is_ascii_digit()) => model,
        _ => name,
    }
}

fn names() -> String {
    MODELS.map(|(name, _)| name).join(", ")
}

/// The signature packs the base family in bits 8 to 11 and what exceeds 15 in bits 20 to 27; the model's low half
/// in bits 4 to 7 and its high half in bits 16 to 19.
fn signature([family, model, stepping]: [u32; 3]) -> u32 {
    let base = family.min(15);
    (family - base) << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | stepping
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_processors() {
        let of = |name: &str| name.parse::<Model>().unwrap().signature;
        assert_eq!(of("EPYC-Rome"), 0x83_0F10);
        assert_eq!(of("epyc-milan-v2"), 0xA0_0F11);
        assert_eq!(of("EPYC-Genoa"), 0xA1_0F10);
        assert_eq!(of("EPYC-Turin"), 0xB0_0F00);
        assert_eq!(of("0xb00f21"), 0xB0_0F21);
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_that_exist() {
        let error = "Xeon".parse::<Model>().unwrap_err().to_string();
        assert!(error.contains("EPYC-Genoa") && error.contains("\"Xeon\""), "{error}");
        assert!("0x".parse::<Model>().is_err() && "0x1ffffffff".parse::<Model>().is_err());
    }
}
