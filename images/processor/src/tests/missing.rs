//! The list of calls that are missing, as the documentation has it.

use super::*;

/// Makes every call that Linux has, each in a process of its own.
#[test]
fn the_calls_that_are_missing_are_those_that_the_documentation_lists() {
    let page = include_str!("../../../../docs/linux-abi.md");
    let (_, list) = page.split_once("compares with this list.").unwrap();
    let listed: Vec<&str> = list.trim().trim_end_matches('.').split(',').collect();
    let listed: Vec<&str> = listed.into_iter().map(str::trim).collect();
    let (mut missing, mut there) = (Vec::new(), 0);
    for number in 0..1024 {
        let Some(name) = crate::system_call_name(number) else {
            continue;
        };
        let node: &FakeNode = node(16);
        let mut run = Run::new(node);
        let args = [0; 6];
        // It may well wait for ever, or end the process.
        let _ = node.try_block_on(run.thread.system_call(SystemCall { number, args }));
        if node.kernel.unimplemented().is_empty() {
            there += 1;
        } else {
            missing.push(name);
        }
    }
    assert_eq!(missing, listed);
    let (_, count) = page.split_once("cores of P. ").unwrap();
    assert!(
        count.starts_with(&format!("{there} of Linux's calls")),
        "{there}"
    );
}
