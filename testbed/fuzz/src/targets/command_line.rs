//! libos: the kernel command line. Written again with every byte escaped, it must parse to the
//! same.

use libos::CommandLine;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(line) = CommandLine::parse(bytes) else {
        return;
    };
    let escaped: String = line
        .program()
        .iter()
        .flat_map(|argument| {
            let bytes = argument.iter().map(|byte| format!("%{byte:02x}"));
            std::iter::once(" ".to_owned()).chain(bytes)
        })
        .collect();
    let text = if escaped.is_empty() {
        String::new()
    } else {
        format!("--{escaped}")
    };
    let again = CommandLine::parse(text.as_bytes()).expect("escapes are legal");
    assert_eq!(again.program(), line.program());
    for key in ["pcache", "ways", "key", "log", "keepalive"] {
        let (size, number) = (line.size(key), line.parsed::<u64>(key));
        if let (Ok(Some(size)), Ok(Some(number))) = (size, number) {
            assert_eq!(size, number, "a plain number is a size");
        }
        assert_eq!(line.value(key).is_some(), line.values(key).count() > 0);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "cluster=a key=00ff keepalive=2000 pcache=4M ways=8 log=debug -- /bin/busybox sort -u /etc/words",
        "env=A=b%20c%25 strace cwd=/tmp --  a  b ",
        "%2",
        "pcache=99999999999G pcache=+1K",
    ]
    .map(|line| line.as_bytes().to_vec())
    .into()
}
