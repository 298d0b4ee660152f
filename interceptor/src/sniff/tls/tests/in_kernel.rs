//! The kernel's reader of ClientHellos beside this one: it may understand less, never something else.

use std::sync::LazyLock;

use interceptor_ebpf::hello::Reading;
use interceptor_ebpf::hello::host::read_payload;
use proptest::prelude::*;

use super::super::fuzzed::agrees;
use super::mutation::mutation;
use super::*;

#[test]
fn the_kernel_reads_honest_hellos_as_the_proxy_does() {
    for (bytes, proxy) in honest() {
        let message = &bytes[RECORD_HEADER..];
        // What a dot behind a name means hangs on the profile: it is the proxy's.
        if matches!(proxy, Scan::Found(hello) if hello.dotted) {
            assert_eq!(read_payload(&bytes).0, Reading::Unclear);
            continue;
        }
        for size in [16384, 500, 64, 16, 7, 5] {
            let bytes = records(message, size);
            if message.len() / size >= interceptor_ebpf::hello::MAX_RECORDS {
                continue;
            }
            let kernel = read_payload(&bytes);
            // HTTP-5: what the profiles read differently is left to them.
            let dotted = matches!(scan(&bytes), Scan::Found(hello) if hello.dotted);
            assert_eq!(kernel.0 == Reading::Unclear, dotted, "{size} {bytes:02x?}");
            assert!(agrees(&kernel, &scan(&bytes)), "{size} {kernel:?}");
            for end in 1..bytes.len() {
                assert_eq!(read_payload(&bytes[..end]).0, Reading::NeedMore, "{end} of {size}");
            }
        }
    }
}

/// Where mutants come from; made once.
static HONEST: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| honest().into_iter().map(|(bytes, _)| bytes).collect());

proptest! {
    // Two readings each.
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn the_kernel_never_reads_another_name(
        which in 0usize..HONEST.len(),
        in_message in proptest::collection::vec(mutation(), 0..3),
        record_size in prop_oneof![3 => Just(16384usize), 1 => 1usize..200],
        on_the_wire in proptest::collection::vec(mutation(), 0..2),
        end in 0usize..4000,
    ) {
        let mut body = HONEST[which][RECORD_HEADER + HANDSHAKE_HEADER..].to_vec();
        in_message.iter().for_each(|m| m.apply(&mut body));
        let mut bytes = records(&message(1, &body), record_size);
        on_the_wire.iter().for_each(|m| m.apply(&mut bytes));
        for bytes in [&bytes[..], &bytes[..end.min(bytes.len())]] {
            let (kernel, proxy) = (read_payload(bytes), scan(bytes));
            prop_assert!(agrees(&kernel, &proxy), "{:?} {:?}", kernel, proxy);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn the_kernel_finds_no_name_in_noise(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        for head in [&[][..], &[22, 3, 1], &[22, 3, 1, 0, 60, 1, 0, 0, 56, 3, 3]] {
            let bytes = [head, &tail].concat();
            let (kernel, proxy) = (read_payload(&bytes), scan(&bytes));
            prop_assert!(agrees(&kernel, &proxy), "{:?} {:?}", kernel, proxy);
        }
    }
}
