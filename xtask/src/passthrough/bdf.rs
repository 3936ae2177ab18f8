//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

/// A function's domain, bus, device and function number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bdf {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for Bdf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!(
                "{text:?} is no PCI address: write it as 04:00.0 or 0000:04:00.0, as lspci does"
            )
        })
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let number = |text: &str, len: usize| {
        let plain = text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    };
    let (front, function) = text.split_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (domain, bus) = front.split_once(':').unwrap_or(("0000", front));
    // PCI Local Bus Specification 3.0, section 3.2.2.3.2: 5 bits of device, 3 of function.
    let device = number(device, 2).filter(|device| *device < 32)?;
    let function = number(function, 1).filter(|function| *function < 8)?;
    Some(Bdf {
        domain: number(domain, 4)?,
        bus: u8::try_from(number(bus, 2)?).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    })
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_domain() {
        let long: Bdf = "0000:0A:1f.7".parse().expect("long");
        assert_eq!("0a:1f.7".parse(), Ok(long));
        assert_eq!(long.to_string(), "0000:0a:1f.7");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "04:00",
            "4:0.0",
            "04:20.0",
            "04:00.8",
            "../..:04:00.0",
            "04:00.0/",
            "0:04:00.0",
        ] {
            assert!(text.parse::<Bdf>().is_err(), "{text:?}");
        }
    }
}
