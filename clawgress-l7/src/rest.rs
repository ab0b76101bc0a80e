//! How a connection goes on once it is known what it is. Its beginning takes many KiB of state, which every idle tunnel
//! would hold if its end were awaited within it: so a beginning returns what follows, and is gone.

use std::pin::Pin;

/// What is left to be done, boxed; `None` where it is over.
pub type Rest<'a> = Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

/// `future`, to be run after what returns it.
#[must_use]
pub fn then<'a>(future: impl Future<Output = ()> + Send + 'a) -> Rest<'a> {
    Some(Box::pin(future))
}

/// Runs a beginning, boxed, and then what it has left to be done.
pub fn whole<'a>(
    beginning: impl Future<Output = Rest<'a>> + Send + 'a,
) -> impl Future<Output = ()> + Send + 'a {
    // Outside the future, which would have room for it otherwise.
    let beginning = Box::pin(beginning);
    async move {
        // A statement of its own, for the beginning to be gone meanwhile.
        let rest = beginning.await;
        if let Some(rest) = rest {
            rest.await;
        }
    }
}
