//! Numbers that a peer writes, with names for the values known here.

/// Defines an open enum over a wire type: any value can be held, printed and compared.
macro_rules! open_enum {
    ($(#[$doc:meta])* $vis:vis struct $name:ident($inner:ty) {
        $($(#[$value_doc:meta])* $value:ident = $number:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        $vis struct $name(pub $inner);

        impl $name {
            $($(#[$value_doc])* pub const $value: Self = Self($number);)*

            /// The value's name, if it has one here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(self, f)
            }
        }
    };
}
pub(crate) use open_enum;

/// States a layout's size and the offsets of its fields, checked when it is compiled.
macro_rules! layout {
    ($type:ty: $size:literal $(, $field:ident @ $offset:literal)* $(,)?) => {
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    };
}
pub(crate) use layout;
