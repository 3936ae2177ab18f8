//! Bytes in and out: a cursor each way, and the trait of everything that travels.

/// Errors of encoding and decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The message ends before its last field.
    #[error("{wanted} bytes wanted, {left} left")]
    TooShort {
        /// Bytes of the next field.
        wanted: usize,
        /// Bytes left.
        left: usize,
    },
    /// Bytes are left over behind the last field.
    #[error("{left} bytes too many")]
    TooLong {
        /// Bytes left over.
        left: usize,
    },
    /// A field holds a value that it can't have.
    #[error("{what} can't be {value:#x}")]
    BadValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A byte string or list is longer than it may be.
    #[error("{len} bytes or items, at most {limit} allowed")]
    StringTooLong {
        /// Its length.
        len: usize,
        /// The bound.
        limit: usize,
    },
    /// No call has this number.
    #[error("no call has the number {kind}")]
    UnknownCall {
        /// The number.
        kind: u16,
    },
    /// The buffer is too small for the message.
    #[error("{wanted} more bytes do not fit the {len}-byte buffer")]
    NoRoom {
        /// Bytes of the next field.
        wanted: usize,
        /// The buffer's length.
        len: usize,
    },
}

/// Takes a message apart from its front.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    ///
    /// [`WireError::TooShort`] when there are fewer.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let too_short = WireError::TooShort {
            wanted: len,
            left: self.left.len(),
        };
        let (taken, left) = self.left.split_at_checked(len).ok_or(too_short)?;
        self.left = left;
        Ok(taken)
    }

    /// Takes everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.left)
    }

    /// Ends: nothing may be left.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] when something is.
    pub fn finish(self) -> Result<(), WireError> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(WireError::TooLong {
                left: self.left.len(),
            })
        }
    }
}

/// Puts a message together.
#[derive(Debug)]
pub struct Writer<'a> {
    into: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Begins at the front of `into`.
    pub fn new(into: &'a mut [u8]) -> Self {
        Self { into, len: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.into.len() - self.len
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// [`WireError::NoRoom`] when they do not fit; nothing was written then.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let len = self.into.len();
        let room = self.into[self.len..]
            .get_mut(..bytes.len())
            .ok_or(WireError::NoRoom {
                wanted: bytes.len(),
                len,
            })?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

/// Something that travels in a message.
pub trait Wire<'a>: Sized {
    /// Appends it.
    ///
    /// # Errors
    ///
    /// [`WireError::NoRoom`], or [`WireError::StringTooLong`] for a string or list past its bound.
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError>;

    /// Takes it from the front.
    ///
    /// # Errors
    ///
    /// See [`WireError`].
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError>;
}

macro_rules! number {
    ($($int:ty),*) => {$(
        impl Wire<'_> for $int {
            fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
                to.bytes(&self.to_le_bytes())
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
                let bytes = from.bytes(size_of::<$int>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("as many bytes as asked for")))
            }
        }
    )*};
}
number!(u8, u16, u32, u64, i32, i64);

impl Wire<'_> for bool {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        u8::from(*self).put(to)
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::BadValue {
                what: "a flag",
                value: other.into(),
            }),
        }
    }
}

impl Wire<'_> for () {
    fn put(&self, _: &mut Writer<'_>) -> Result<(), WireError> {
        Ok(())
    }
    fn take(_: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(())
    }
}

impl Wire<'_> for verbs::RemoteAddr {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        self.addr.put(to)?;
        self.rkey.0.put(to)
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            addr: u64::take(from)?,
            rkey: verbs::Rkey(u32::take(from)?),
        })
    }
}

/// A list goes as a 16-bit count and its items.
impl<'a, T: Wire<'a>, const N: usize> Wire<'a> for heapless::Vec<T, N> {
    fn put(&self, to: &mut Writer<'_>) -> Result<(), WireError> {
        let len = u16::try_from(self.len()).map_err(|_| WireError::StringTooLong {
            len: self.len(),
            limit: u16::MAX.into(),
        })?;
        len.put(to)?;
        self.iter().try_for_each(|item| item.put(to))
    }
    fn take(from: &mut Reader<'a>) -> Result<Self, WireError> {
        let len = usize::from(u16::take(from)?);
        let too_long = WireError::StringTooLong { len, limit: N };
        if len > N {
            return Err(too_long);
        }
        let mut list = Self::new();
        for _ in 0..len {
            list.push(T::take(from)?).map_err(|_| too_long)?;
        }
        Ok(list)
    }
}

/// A number that one side gave and the other gives back goes as its eight bytes.
macro_rules! wire_handle {
    ($name:ident) => {
        impl $crate::Wire<'_> for $name {
            fn put(&self, to: &mut $crate::Writer<'_>) -> Result<(), $crate::WireError> {
                self.0.put(to)
            }
            fn take(from: &mut $crate::Reader<'_>) -> Result<Self, $crate::WireError> {
                Ok(Self(u64::take(from)?))
            }
        }
    };
}
pub(crate) use wire_handle;

/// Flags go as the number that they are; a bit without a name is refused, by the name of what it
/// stands in.
macro_rules! wire_flags {
    ($name:ident, $what:literal) => {
        impl $crate::Wire<'_> for $name {
            fn put(&self, to: &mut $crate::Writer<'_>) -> Result<(), $crate::WireError> {
                self.bits().put(to)
            }
            fn take(from: &mut $crate::Reader<'_>) -> Result<Self, $crate::WireError> {
                let bits = $crate::Wire::take(from)?;
                Self::from_bits(bits).ok_or($crate::WireError::BadValue {
                    what: $what,
                    value: bits.into(),
                })
            }
        }
    };
}
pub(crate) use wire_flags;

/// Defines a struct whose wire form is its fields in order.
macro_rules! wire_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        impl<'a> $crate::Wire<'a> for $name {
            fn put(&self, to: &mut $crate::Writer<'_>) -> Result<(), $crate::WireError> {
                $(self.$field.put(to)?;)*
                Ok(())
            }
            fn take(from: &mut $crate::Reader<'a>) -> Result<Self, $crate::WireError> {
                Ok(Self { $($field: $crate::Wire::take(from)?,)* })
            }
        }
    };
}
pub(crate) use wire_struct;

/// Defines the calls of one component: their types, the enum of their requests, and their names.
macro_rules! calls {
    ($(#[$doc:meta])* $requests:ident $(<$life:lifetime>)?: $($(#[$cdoc:meta])* $call:ident = $kind:literal, $name:literal:
        $request:ty => $reply:ty;)*) => {
        $(
            $(#[$cdoc])*
            #[derive(Debug, Clone, Copy)]
            pub enum $call {}
            impl $crate::Call for $call {
                const KIND: $crate::Kind = $crate::Kind($kind);
                const NAME: &'static str = $name;
                type Request<'a> = $request;
                type Reply<'a> = $reply;
            }
            const _: () = assert!($kind < $crate::Kind::COUNT);
        )*

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $requests $(<$life>)? {
            $($(#[$cdoc])* $call($request),)*
        }

        impl $(<$life>)? $requests $(<$life>)? {
            /// Reads a request as it arrived.
            ///
            /// # Errors
            ///
            /// See [`WireError`](crate::WireError).
            pub fn decode(kind: $crate::Kind, bytes: &$($life)? [u8]) -> Result<Self, $crate::WireError> {
                let mut reader = $crate::Reader::new(bytes);
                let request = match kind.0 {
                    $($kind => Self::$call($crate::Wire::take(&mut reader)?),)*
                    kind => return Err($crate::WireError::UnknownCall { kind }),
                };
                reader.finish()?;
                Ok(request)
            }

            /// Writes the request; returns its kind and length.
            ///
            /// # Errors
            ///
            /// As [`encode_request`](crate::encode_request).
            pub fn encode(&self, into: &mut [u8]) -> Result<($crate::Kind, usize), $crate::WireError> {
                match self {
                    $(Self::$call(request) => Ok((
                        $crate::Kind($kind),
                        $crate::encode_request::<$call>(request, into)?,
                    )),)*
                }
            }
        }

        pub(crate) fn name(kind: $crate::Kind) -> Option<&'static str> {
            match kind.0 {
                $($kind => Some($name),)*
                _ => None,
            }
        }
    };
}
pub(crate) use calls;
