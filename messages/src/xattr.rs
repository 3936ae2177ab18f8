//! Names and values of extended attributes.

use crate::{Reader, Wire, WireError, Writer};

/// The longest name of an extended attribute, its prefix included (Linux `XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;

bitflags::bitflags! {
    /// Flags of setting an extended attribute (setxattr(2)).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct XattrFlags: u8 {
        /// EEXIST if it is there (`XATTR_CREATE`).
        const CREATE = 1;
        /// ENODATA if it is not (`XATTR_REPLACE`).
        const REPLACE = 2;
    }
}
crate::wire::wire_flags!(XattrFlags, "the flags of an attribute");

/// The name of an extended attribute, as `user.mime_type`: 1 to [`XATTR_NAME_MAX`] bytes without a
/// zero among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrName<'a>(&'a [u8]);

impl<'a> XattrName<'a> {
    /// Takes bytes as a name.
    ///
    /// # Errors
    ///
    /// [`WireError::StringTooLong`], or [`WireError::BadValue`] for no bytes or a zero.
    pub fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > XATTR_NAME_MAX {
            return Err(WireError::StringTooLong {
                len: bytes.len(),
                limit: XATTR_NAME_MAX,
            });
        }
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(WireError::BadValue {
                what: "a byte of a name",
                value: 0,
            });
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Wire<'a> for XattrName<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        u8::try_from(self.0.len())
            .expect("at most XATTR_NAME_MAX")
            .put(to)?;
        to.bytes(self.0)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let len = usize::from(u8::take(from)?);
        Self::new(from.bytes(len)?)
    }
}

/// The bytes that a message ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest<'a>(pub &'a [u8]);

impl<'a> Wire<'a> for Rest<'a> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        to.bytes(self.0)
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self(from.rest()))
    }
}
