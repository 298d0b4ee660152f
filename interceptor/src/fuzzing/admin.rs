//! The control socket.

use std::os::fd::OwnedFd;

use ipnet::IpNet;

use crate::admin::server::{perform, read};
use crate::admin::{Answer, ExecInfo, Handler, Offer, Request, StatusReport};
use crate::cli::parse_cidr;

/// A daemon that takes every network.
struct Willing;

impl Handler for Willing {
    fn status(&self) -> StatusReport {
        StatusReport::default()
    }

    fn bypass_add(&self, net: IpNet) -> Result<(), String> {
        assert_eq!(net, net.trunc(), "bits beyond the prefix");
        // What `bypass list` prints is taken by `bypass del`.
        assert_eq!(parse_cidr(&net.to_string()), Ok(net));
        Ok(())
    }

    fn bypass_del(&self, net: IpNet) -> Result<(), String> {
        Err(format!("{net} is not in the table"))
    }

    fn bypass_list(&self) -> Vec<IpNet> {
        Vec::new()
    }

    fn exec_info(&self) -> Result<ExecInfo, String> {
        Err("no place".to_owned())
    }

    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        Err("no successor".to_owned())
    }

    fn lay_down(&self) -> Result<(), String> {
        Err("no successor".to_owned())
    }
}

/// A request: read as one thing or refused in words; the answer is one line that the client reads as
/// what was meant.
pub(super) fn request(input: &[u8]) {
    let line = [input, b"\n"].concat();
    let answer = match read(&line) {
        Ok(request) => {
            let again = serde_json::to_vec(&request).expect("a request is JSON");
            let same: Request = serde_json::from_slice(&again).expect("what we wrote");
            assert_eq!(same, request);
            perform(request, &Willing)
        }
        Err(why) => Answer::Error(why),
    };
    let answered = serde_json::to_vec(&answer).expect("an answer is JSON");
    assert!(!answered.contains(&b'\n'), "one line");
    let same: Answer = serde_json::from_slice(&answered).expect("what we wrote");
    assert_eq!(same, answer);
    assert!(read(input).is_err() || input.ends_with(b"\n"), "a request that is cut off is none");
}
