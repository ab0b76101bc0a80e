//! How many streams of a connection are served: those, too, that the client has reset and that are not at their end yet.

use tokio::sync::watch;

/// The streams.
#[derive(Debug, Default)]
pub struct UnderWay(watch::Sender<u32>);

/// The place of one.
#[derive(Debug)]
pub struct Place(watch::Sender<u32>);

// === impl UnderWay ===

impl UnderWay {
    /// A place for one more, if there are fewer than `most`.
    #[must_use]
    pub fn take(&self, most: u32) -> Option<Place> {
        let is_taken = self.0.send_if_modified(|n| {
            let is_free = *n < most;
            *n += u32::from(is_free);
            is_free
        });
        is_taken.then(|| Place(self.0.clone()))
    }

    /// Ends when there is none, at once if so.
    pub async fn none(&self) {
        // The other end is here.
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}
