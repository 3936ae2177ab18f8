//! The choice of S's disk among those of its machine: the boot option `disk=`.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

/// Kind of a disk's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A virtio block device.
    Virtio,
    /// A namespace of an NVMe controller.
    Nvme,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virtio => "virtio",
            Self::Nvme => "nvme",
        })
    }
}

/// The disk that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first.
    #[default]
    Any,
    /// The first of a kind.
    Kind(Kind),
    /// The one at a place of the PCI bus, such as `00:10.0`, or `0001:00:10.0` in another segment
    /// than 0.
    Place(String),
    /// The one with a serial number.
    Serial(String),
}

/// A choice's text is none that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a disk is chosen by virtio, nvme, pci:[SEGMENT:]BUS:DEVICE.FUNCTION or serial:TEXT")]
pub struct BadChoice;

impl FromStr for Choice {
    type Err = BadChoice;

    fn from_str(text: &str) -> Result<Self, BadChoice> {
        match (text, text.split_once(':')) {
            ("virtio", _) => Ok(Self::Kind(Kind::Virtio)),
            ("nvme", _) => Ok(Self::Kind(Kind::Nvme)),
            (_, Some(("pci", place))) if is_place(place) => {
                // Segment 0 isn't shown.
                let place = place.strip_prefix("0000:").unwrap_or(place);
                Ok(Self::Place(place.to_string()))
            }
            (_, Some(("serial", serial))) if !serial.is_empty() => {
                Ok(Self::Serial(serial.to_string()))
            }
            _ => Err(BadChoice),
        }
    }
}

/// Returns whether a text is a place as PCI functions are shown: `00:10.0` or `0001:00:10.0`.
fn is_place(text: &str) -> bool {
    let is = |shape: &[u8]| {
        let mut pairs = text.bytes().zip(shape);
        text.len() == shape.len()
            && pairs.all(|(byte, &shape)| match shape {
                b'0' => byte.is_ascii_hexdigit(),
                _ => byte == shape,
            })
    };
    is(b"00:00.0") || is(b"0000:00:00.0")
}

impl Choice {
    /// Returns whether a disk of a kind at a place may be the one; its serial number is asked for
    /// afterwards.
    #[must_use]
    pub fn may_be(&self, kind: Kind, place: &str) -> bool {
        match self {
            Self::Any | Self::Serial(_) => true,
            Self::Kind(wanted) => *wanted == kind,
            Self::Place(wanted) => wanted.eq_ignore_ascii_case(place),
        }
    }

    /// Returns the serial number that is wanted.
    #[must_use]
    pub fn serial(&self) -> Option<&str> {
        match self {
            Self::Serial(serial) => Some(serial),
            _ => None,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Kind(kind) => kind.fmt(f),
            Self::Place(place) => write!(f, "pci:{place}"),
            Self::Serial(serial) => write!(f, "serial:{serial}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_chosen_by_kind_place_or_serial() {
        let parsed = |text: &str| text.parse::<Choice>();
        for text in [
            "virtio",
            "nvme",
            "pci:00:1f.2",
            "pci:0001:00:1f.2",
            "serial:S64 1:2",
        ] {
            assert_eq!(parsed(text).expect("a choice").to_string(), text);
        }
        for text in [
            "",
            "sata",
            "pci:",
            "pci:0:1f.2",
            "pci:000:00:1f.2",
            "pci:0000:00:1f.2:",
            "serial:",
            "pci:00:1é.2",
        ] {
            assert_eq!(parsed(text), Err(BadChoice), "{text}");
        }
        let place = parsed("pci:0A:10.0").expect("a choice");
        assert!(place.may_be(Kind::Nvme, "0a:10.0") && !place.may_be(Kind::Nvme, "00:10.0"));
        assert_eq!(parsed("pci:0000:00:10.0"), parsed("pci:00:10.0"));
        let kind = parsed("nvme").expect("a choice");
        assert!(kind.may_be(Kind::Nvme, "x") && !kind.may_be(Kind::Virtio, "x"));
        assert!(Choice::Any.may_be(Kind::Virtio, "x") && Choice::Any.serial().is_none());
        assert_eq!(parsed("serial:a").expect("a choice").serial(), Some("a"));
    }
}
