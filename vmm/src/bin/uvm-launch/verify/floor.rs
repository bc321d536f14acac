//! TCB floors on the command line: `genoa:bootloader=9,tee=0,snp=23,microcode=72`.

use std::str::FromStr;

use evidence::tcb::{Product, Tcb};

/// The lowest TCB version that is acceptable on a product line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor(pub Product, pub Tcb);

impl FromStr for Floor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "PRODUCT:bootloader=N,tee=N,snp=N,microcode=N (on Turin also fmc=N)";
        let error = || format!("expected {form}, found {text:?}");
        let (product, parts) = text.split_once(':').ok_or_else(error)?;
        let known = Product::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(product));
        let product = known.ok_or_else(|| {
            format!("expected {}, found {product:?}", Product::ALL.map(Product::name).join(", "))
        })?;
        let mut parts: Vec<(&str, u8)> = parts
            .split(',')
            .map(|part| {
                let (name, number) = part.split_once('=').ok_or_else(error)?;
                Ok((
                    name,
                    number.parse().map_err(|_| format!("{name}: expected 0 to 255, found {number:?}"))?,
                ))
            })
            .collect::<Result<_, String>>()?;
        let mut take = |name: &str| {
            let at = parts.iter().position(|(other, _)| *other == name);
            at.map(|at| parts.swap_remove(at).1)
                .ok_or_else(|| format!("{name}: expected in {form}, found none"))
        };
        let tcb = Tcb {
            fmc: if product == Product::Turin { Some(take("fmc")?) } else { None },
            bootloader: take("bootloader")?,
            tee: take("tee")?,
            snp: take("snp")?,
            microcode: take("microcode")?,
        };
        match parts.first() {
            Some((name, _)) => Err(format!("{name}: expected {form}, found one part too many")),
            None => Ok(Self(product, tcb)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_named_once() {
        let floor: Floor = "genoa:snp=23,bootloader=9,tee=0,microcode=72".parse().unwrap();
        let tcb = Tcb { fmc: None, bootloader: 9, tee: 0, snp: 23, microcode: 72 };
        assert_eq!(floor, Floor(Product::Genoa, tcb));
        let turin: Floor = "Turin:fmc=1,bootloader=1,tee=1,snp=4,microcode=81".parse().unwrap();
        assert_eq!(turin.1.fmc, Some(1));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let refusal = |text: &str| text.parse::<Floor>().unwrap_err();
        assert!(refusal("rome:snp=1").contains("expected Milan, Genoa, Turin, found \"rome\""));
        assert!(refusal("milan:bootloader=1,tee=0,snp=1").starts_with("microcode:"));
        assert!(refusal("milan:bootloader=1,tee=0,snp=1,microcode=1,fmc=1").starts_with("fmc:"));
        assert!(refusal("milan:bootloader=1,tee=0,snp=1,microcode=1,snp=1").starts_with("snp:"));
        assert!(refusal("milan:bootloader=256,tee=0,snp=1,microcode=1").contains("expected 0 to 255"));
        assert!(refusal("milan").contains("expected PRODUCT:"));
    }
}
