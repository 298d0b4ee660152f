//! A runtime on a thread of its own, whose sockets belong to a namespace.

use std::future::Future;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use tokio::sync::oneshot;

use crate::netns::Namespace;

/// Something that runs until the value is dropped.
#[derive(Debug)]
pub(super) struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs `open` in `namespace` and, when it has ended well, what it spawned. Returns when it has
    /// ended.
    ///
    /// # Errors
    /// When the namespace can't be entered, or what `open` fails with.
    pub(super) fn start<F>(
        namespace: &Namespace,
        open: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Result<()>>,
    {
        let (stop, stopped) = oneshot::channel();
        let (ready, readiness) = mpsc::channel();
        // The new thread inherits the namespace of the one that starts it.
        let thread = namespace.inside(|| {
            thread::spawn(move || {
                let started = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let result = started.context("a runtime").and_then(|runtime| {
                    runtime.block_on(async {
                        open().await?;
                        let _ = ready.send(Ok(()));
                        // A dropped sender means stop, too.
                        let _ = stopped.await;
                        Ok(())
                    })
                });
                if let Err(error) = result {
                    let _ = ready.send(Err(error));
                }
            })
        })?;
        let background = Self { stop: Some(stop), thread: Some(thread) };
        readiness.recv().map_err(|_| anyhow!("the servers' thread ended early"))??;
        Ok(background)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
