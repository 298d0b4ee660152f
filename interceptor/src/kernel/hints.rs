//! What workloads heard from resolvers, from its ring buffer.

use aya::maps::{MapData, RingBuf};
use interceptor_common::Hint;
use tokio::io::unix::AsyncFd;

use super::events::{read, watch};

/// Reads the ring buffer.
pub struct HintReader {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl HintReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        Ok(Self { ring: watch(ring)? })
    }

    /// Waits for hints and hands the heads of at most `most` datagrams to `each`; gives how many.
    ///
    /// # Errors
    /// The ring buffer cannot be polled.
    pub async fn next(
        &mut self,
        most: usize,
        mut each: impl FnMut(&[u8]),
    ) -> std::io::Result<usize> {
        let mut guard = self.ring.readable_mut().await?;
        for count in 0..most {
            let Some(item) = guard.get_inner_mut().next() else {
                guard.clear_ready();
                return Ok(count);
            };
            if let Some(hint) = read::<Hint>(&item) {
                each(hint.bytes.get(..hint.len as usize).unwrap_or_default());
            }
        }
        Ok(most)
    }
}
