//! The name servers of a resolv.conf.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The servers that `path` names, in order, at port 53.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&std::fs::read_to_string(path)?))
}

/// `nameserver` lines; a scope (`fe80::1%eth0`) cannot be used here and is left out.
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nameserver_lines_count() {
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 127.0.0.53\n\
                    nameserver  2001:db8::53 # second\nnameserver fe80::1%eth0\nnameserver\noptions ndots:5\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[2001:db8::53]:53"]);
    }
}
