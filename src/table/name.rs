//! Names of devices, and other text of bounded length. A name is also the name of a directory and of a socket, so it
//! can hold nothing that means something to a path, a shell option or a unit file.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;

/// The name of a device: 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot or a dash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The text cannot be the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the name of a device: use 1 to {max} letters, digits, `.`, `_` or `-`, beginning with a letter, digit or `_`", max = Name::MAX)]
pub struct BadName(pub String);

impl Name {
    /// Most bytes of a name.
    pub const MAX: usize = 64;

    /// Check a name.
    ///
    /// # Errors
    /// The text is empty, too long, or holds a character that names cannot hold.
    pub fn new(text: &str) -> Result<Name, BadName> {
        let fits = (1..=Name::MAX).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
            && !text.starts_with(['.', '-']);
        if fits {
            Ok(Name(text.to_owned()))
        } else {
            Err(BadName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;

    fn try_from(text: String) -> Result<Name, BadName> {
        Name::new(&text)
    }
}

impl std::str::FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Name, BadName> {
        Name::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text of at most `N` bytes, without NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const N: usize>(String);

/// The text does not fit its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} has {len} bytes or a NUL, and at most {max} bytes without NUL can be recorded", len = .text.len())]
pub struct BadText {
    /// The text.
    pub text: String,
    /// Most bytes that fit.
    pub max: usize,
}

impl<const N: usize> Text<N> {
    /// Check a text.
    ///
    /// # Errors
    /// It is too long, or holds a NUL.
    pub fn new(text: &str) -> Result<Text<N>, BadText> {
        if text.len() <= N && !text.contains('\0') {
            Ok(Text(text.to_owned()))
        } else {
            Err(BadText {
                text: text.to_owned(),
                max: N,
            })
        }
    }

    /// The text, cut where it would not fit. For what is only compared or shown, never for what is opened.
    pub fn cut(text: &str) -> Text<N> {
        let mut text = text.replace('\0', "");
        let fits = (0..=N.min(text.len())).rev().find(|&len| text.is_char_boundary(len));
        text.truncate(fits.unwrap_or(0));
        Text(text)
    }
}

impl<const N: usize> TryFrom<String> for Text<N> {
    type Error = BadText;

    fn try_from(text: String) -> Result<Text<N>, BadText> {
        Text::new(&text)
    }
}

impl<const N: usize> From<Text<N>> for String {
    fn from(text: Text<N>) -> String {
        text.0
    }
}

impl<const N: usize> Deref for Text<N> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_a_file_name_and_nothing_else() {
        for good in ["a", "vm1", "Web_01.data-2", "_", &"x".repeat(64)] {
            assert_eq!(Name::new(good).expect(good).to_string(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "a b",
            "a\0",
            "ä",
            "a\n",
            "a@b",
            &"x".repeat(65),
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
            assert!(
                serde_json::from_value::<Name>(serde_json::json!(bad)).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(&*Text::<4>::cut("aäöü"), "aä");
        assert_eq!(&*Text::<4>::cut("a\0b"), "ab");
        assert!(Text::<4>::new("aäöü").is_err());
        assert!(Text::<4>::new("a\0").is_err());
    }
}
