//! Why a gateway's policy refused a stream that it had taken in: the gateway's word, in the code of the
//! stream's reset. Nothing else fits: a CONNECT stream has no trailers (RFC 9113 8.5), and its bytes are the
//! server's. An unknown code changes nothing for who does not know it (RFC 9113 7).

use std::sync::{Arc, OnceLock};

use h2::Reason as Code;

use crate::decide::Reason;

/// The reason's number is in the low half; the high half says that it is one.
const REFUSED: u32 = 0x6978_0000;

/// Set once a stream was refused, by whoever hears of it first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal(Arc<OnceLock<Reason>>);

impl Refusal {
    /// Why it was refused; `None`: it was not.
    pub fn reason(&self) -> Option<Reason> {
        self.0.get().copied()
    }

    /// It is refused. What was said first stays.
    pub fn set(&self, reason: Reason) {
        // Said already.
        let _ = self.0.set(reason);
    }

    /// The code of the stream's reset.
    pub(super) fn code(&self) -> Code {
        let number = |reason| Reason::ALL.iter().position(|one| *one == reason);
        match self.reason().and_then(number).and_then(|number| u16::try_from(number).ok()) {
            Some(number) => Code::from(REFUSED | u32::from(number)),
            None => Code::CANCEL,
        }
    }

    /// Takes a reason from the code of a reset, if there is one of ours in it.
    pub(super) fn hear(&self, code: Option<Code>) {
        let Some(code) = code.map(u32::from).filter(|code| code & 0xffff_0000 == REFUSED) else {
            return;
        };
        if let Some(reason) = Reason::ALL.get((code & 0xffff) as usize) {
            self.set(*reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_way_and_nothing_else_is_one() {
        for reason in Reason::ALL {
            let (said, heard) = (Refusal::default(), Refusal::default());
            said.set(reason);
            heard.hear(Some(said.code()));
            assert_eq!(heard.reason(), Some(reason));
        }
        let heard = Refusal::default();
        assert_eq!(heard.code(), Code::CANCEL);
        for code in [0, 8, 0x6978_ffff, 0x6979_0001, u32::MAX] {
            heard.hear(Some(Code::from(code)));
        }
        heard.hear(None);
        assert_eq!(heard.reason(), None);
    }
}
