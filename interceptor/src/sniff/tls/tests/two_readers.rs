//! The second reader beside this one: whatever was done to the bytes of a hello, both say the same.

use proptest::prelude::*;

use super::super::second::{self, Answer};
use super::mutation::mutation;
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// After every piece the answer is that of the second reader on the same prefix.
    #[test]
    fn two_readers_agree_on_mutated_hellos(
        which in 0usize..8,
        in_message in proptest::collection::vec(mutation(), 0..3),
        record_size in prop_oneof![Just(16384usize), 1usize..200],
        on_the_wire in proptest::collection::vec(mutation(), 0..2),
        pieces in proptest::collection::vec(1usize..400, 1..8),
    ) {
        let mut body = honest()[which].0[RECORD_HEADER + HANDSHAKE_HEADER..].to_vec();
        in_message.iter().for_each(|m| m.apply(&mut body));
        let mut bytes = records(&message(1, &body), record_size);
        on_the_wire.iter().for_each(|m| m.apply(&mut bytes));

        let mut reader = Reader::default();
        let mut taken = 0;
        let mut sizes = pieces.iter().cycle();
        while taken < bytes.len() {
            let end = bytes.len().min(taken + sizes.next().unwrap());
            let answer = Answer::from(reader.push(&bytes[taken..end]));
            let want = second::scan(&bytes[..end]);
            prop_assert_eq!(&answer, &want, "after {} bytes", end);
            if answer != Answer::NeedMore {
                break;
            }
            taken = end;
        }
        prop_assert_eq!(Answer::from(scan(&bytes)), second::scan(&bytes));
    }

    /// Nothing panics and both agree on bytes without any form.
    #[test]
    fn two_readers_agree_on_noise(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        for head in [&[][..], &[22, 3, 1], &[22, 3, 1, 0, 60, 1, 0, 0, 56, 3, 3]] {
            let bytes = [head, &tail].concat();
            prop_assert_eq!(Answer::from(scan(&bytes)), second::scan(&bytes));
        }
    }
}
