//! What goes to a client in one segment: Pingora writes a response's head and the first of its body apart, and flushes where
//! nothing is to wait.
//!
//! INVARIANT: what is held is the first write after a flush and nothing else, so a body that trickles in is never held back.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::AsyncWrite;

/// Most bytes held: a head of ordinary size. A larger one goes by itself.
const HELD_BYTES_MAX: usize = 8 * 1024;
/// Pieces written at once, with what is held: a chunk of Pingora's has three.
const PIECES_MAX: usize = 8;

/// The writer's side of a stream.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    held: BytesMut,
    /// Whether something was written since the last flush.
    is_begun: bool,
}

// === impl Outgoing ===

impl Outgoing {
    /// Writes some of `pieces`, or holds all of them; how many bytes of theirs.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        inner: &mut W,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if !std::mem::replace(&mut self.is_begun, true) && bytes <= HELD_BYTES_MAX {
            pieces.iter().for_each(|piece| self.held.extend_from_slice(piece));
            return Poll::Ready(Ok(bytes));
        }
        loop {
            let held = self.held.len();
            let n = if held == 0 {
                ready!(Pin::new(&mut *inner).poll_write_vectored(cx, pieces))?
            } else {
                let mut all = [IoSlice::new(&[]); PIECES_MAX];
                let with_held = [IoSlice::new(&self.held)].into_iter().chain(pieces.iter().copied());
                all.iter_mut().zip(with_held).for_each(|(place, piece)| *place = piece);
                ready!(Pin::new(&mut *inner).poll_write_vectored(cx, &all))?
            };
            self.held.advance(n.min(held));
            // Nothing at all is the stream's to explain; of what is held alone more is to go.
            if n > held || n == 0 || bytes == 0 {
                return Poll::Ready(Ok(n.saturating_sub(held)));
            }
        }
    }

    /// Writes what is held; what the stream holds itself is the caller's to flush.
    pub(super) fn poll_write_held<W: AsyncWrite + Unpin>(
        &mut self,
        inner: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let n = ready!(Pin::new(&mut *inner).poll_write(cx, &self.held))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(n);
        }
        // An idle connection has no room for it.
        self.held = BytesMut::new();
        self.is_begun = false;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Takes no more than so many bytes at once, and keeps each write apart.
    struct Sink {
        most: usize,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            let taken = all[..all.len().min(self.most)].to_vec();
            let n = taken.len();
            self.writes.push(taken);
            Poll::Ready(Ok(n))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Each text is written whole; an empty one is a flush.
    async fn write(most: usize, texts: &[&str]) -> Vec<String> {
        let (mut outgoing, mut sink) = (Outgoing::default(), Sink { most, writes: Vec::new() });
        for text in texts {
            let mut rest = text.as_bytes();
            if rest.is_empty() {
                poll_fn(|cx| outgoing.poll_write_held(&mut sink, cx)).await.unwrap();
            }
            while !rest.is_empty() {
                let n = poll_fn(|cx| outgoing.poll_write(&mut sink, cx, &[IoSlice::new(rest)]));
                rest = &rest[n.await.unwrap()..];
            }
        }
        sink.writes.into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_head_goes_with_the_first_of_its_body_and_the_rest_by_itself() {
        assert_eq!(write(100, &["head", "one", "two", ""]).await, ["headone", "two"]);
        assert_eq!(write(100, &["head", "", "one", "", "two", ""]).await, ["head", "one", "two"]);
        assert_eq!(write(100, &["head", "one", "", "next", ""]).await, ["headone", "next"]);
    }

    #[tokio::test]
    async fn what_the_stream_takes_in_parts_comes_whole_and_once() {
        for most in 1..8 {
            assert_eq!(write(most, &["head", "one", "two", "", "next", ""]).await.concat(), "headonetwonext");
        }
    }

    #[tokio::test]
    async fn a_large_first_write_is_not_held() {
        let large = "x".repeat(HELD_BYTES_MAX + 1);
        assert_eq!(write(usize::MAX, &[&large, "y", ""]).await, [large.as_str(), "y"]);
    }
}
