//! A TCG plugin for the QEMU of one node.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// A plugin and the node whose QEMU loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plugin {
    node: String,
    /// The file and its arguments, as QEMU's `-plugin` takes them.
    text: String,
}

impl FromStr for Plugin {
    type Err = anyhow::Error;

    /// Reads `NODE:FILE[,ARGUMENT=VALUE]…`.
    fn from_str(text: &str) -> Result<Self> {
        let (node, text) = text
            .split_once(':')
            .context("a plugin is NODE:FILE[,ARGUMENT=VALUE]…")?;
        ensure!(
            !node.is_empty() && !text.is_empty(),
            "a plugin needs a node and a file"
        );
        let (node, text) = (node.to_owned(), text.to_owned());
        Ok(Self { node, text })
    }
}

/// Returns what a node's QEMU is to load.
pub(crate) fn of_node<'a>(plugins: &'a [Plugin], node: &str) -> Option<&'a str> {
    let plugin = plugins.iter().find(|plugin| plugin.node == node)?;
    Some(&plugin.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_belongs_to_a_node() {
        let plugins = ["processor:/tmp/a.so,out=/tmp/x:y"
            .parse::<Plugin>()
            .unwrap()];
        assert_eq!(
            of_node(&plugins, "processor"),
            Some("/tmp/a.so,out=/tmp/x:y")
        );
        assert_eq!(of_node(&plugins, "memory"), None);
        for bad in ["a.so", ":a.so", "processor:"] {
            assert!(bad.parse::<Plugin>().is_err(), "{bad}");
        }
    }
}
