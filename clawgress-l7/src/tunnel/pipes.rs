//! Pipes, shared by all tunnels: one is held only while bytes are in it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Pipes at once. The kernel grants an unprivileged user 64 MiB of pipe buffers (1024 pipes) and then
/// only tiny ones (pipe(7), `pipe-user-pages-soft`); half of that leaves room. Beyond it, tunnels copy.
const LIVE_MAX: usize = 512;
/// Pipes kept for reuse: more directions than this seldom move at the same instant.
const IDLE_MAX: usize = 64;
/// Bytes of an ordinary pipe (pipe(7)).
pub const PIPE_BYTES: usize = 64 * 1024;
/// Bytes of a wide one, for directions in which much moves: what the kernel grants an unprivileged user
/// (`pipe-max-size`).
pub const WIDE_BYTES: usize = 1 << 20;
/// Wide pipes at once, a quarter of what is granted. Each is one of the pipes at once as well.
pub const WIDE_MAX: usize = 16;
/// Those of one agent: a few readers that take nothing must not leave the others none.
pub const WIDE_SHARE: usize = WIDE_MAX / 4;

type Ends = (OwnedFd, OwnedFd);

/// The pool.
#[derive(Debug)]
pub struct Pipes {
    idle: Mutex<Vec<Ends>>,
    idle_wide: Mutex<Vec<Ends>>,
    live: AtomicUsize,
    live_max: usize,
    wide: AtomicUsize,
    /// How many each agent has in use, by its index; none that has none.
    wide_of: Mutex<HashMap<u32, usize>>,
    /// Whether the system refused one.
    has_no_wide: AtomicBool,
}

/// A pipe in use.
#[derive(Debug)]
pub struct Pipe {
    pool: Arc<Pipes>,
    /// Reader and writer; `None` only while dropping.
    ends: Option<Ends>,
    /// Whose it is, of a wide one.
    wide_of: Option<u32>,
    held: usize,
}

// === impl Pipes ===

impl Default for Pipes {
    fn default() -> Self {
        Pipes::with_max(LIVE_MAX)
    }
}

impl Pipes {
    /// A pool of at most `live_max` pipes.
    #[must_use]
    pub fn with_max(live_max: usize) -> Self {
        Pipes {
            idle: Mutex::default(),
            idle_wide: Mutex::default(),
            live: AtomicUsize::new(0),
            live_max,
            wide: AtomicUsize::new(0),
            wide_of: Mutex::default(),
            has_no_wide: AtomicBool::new(false),
        }
    }

    /// An empty pipe; `None` if there are enough, or the system gives no more.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Pipe> {
        let ends = self.idle.lock().pop();
        let ends = ends.or_else(|| self.open())?;
        Some(Pipe { pool: Arc::clone(self), ends: Some(ends), wide_of: None, held: 0 })
    }

    /// An empty pipe for much of an agent's, as far as there are any and it has not its share; else as [`take`](Self::take).
    #[must_use]
    pub fn take_wide(self: &Arc<Self>, agent: u32) -> Option<Pipe> {
        if !self.share(agent) {
            return self.take();
        }
        let ends = self.idle_wide.lock().pop();
        match ends.or_else(|| self.widen()) {
            Some(ends) => {
                Some(Pipe { pool: Arc::clone(self), ends: Some(ends), wide_of: Some(agent), held: 0 })
            }
            None => {
                self.give_back(agent);
                self.take()
            }
        }
    }

    /// Counts one more wide pipe of an agent's, if it may have one.
    fn share(&self, agent: u32) -> bool {
        let mut all = self.wide_of.lock();
        let own = all.entry(agent).or_default();
        let is_free = *own < WIDE_SHARE;
        *own += usize::from(is_free);
        is_free
    }

    fn give_back(&self, agent: u32) {
        let mut all = self.wide_of.lock();
        if let Some(own) = all.get_mut(&agent) {
            *own -= 1;
            if *own == 0 {
                all.remove(&agent);
            }
        }
    }

    fn open(&self) -> Option<Ends> {
        let ends = (self.live.fetch_add(1, Ordering::AcqRel) < self.live_max)
            .then(|| pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok())
            .flatten();
        if ends.is_none() {
            self.live.fetch_sub(1, Ordering::AcqRel);
        }
        ends
    }

    fn widen(&self) -> Option<Ends> {
        if self.has_no_wide.load(Ordering::Relaxed) {
            return None;
        }
        let ends = (self.wide.fetch_add(1, Ordering::AcqRel) < WIDE_MAX).then(|| self.open()).flatten();
        match ends {
            Some(ends) if fcntl_setpipe_size(&ends.1, WIDE_BYTES).is_ok() => Some(ends),
            Some(_) => {
                // Of its user's others, perhaps: it is as good with ordinary ones.
                self.has_no_wide.store(true, Ordering::Relaxed);
                self.close(true);
                None
            }
            None => {
                self.wide.fetch_sub(1, Ordering::AcqRel);
                None
            }
        }
    }

    /// Counts one pipe less.
    fn close(&self, is_wide: bool) {
        self.live.fetch_sub(1, Ordering::AcqRel);
        if is_wide {
            self.wide.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

// === impl Pipe ===

impl Pipe {
    /// Where bytes come out.
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.end(|(reader, _)| reader)
    }

    /// Where bytes go in.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.end(|(_, writer)| writer)
    }

    #[expect(clippy::expect_used, reason = "the ends are only taken out in drop, after which nobody can ask")]
    fn end(&self, which: impl Fn(&(OwnedFd, OwnedFd)) -> &OwnedFd) -> BorrowedFd<'_> {
        which(self.ends.as_ref().expect("ends")).as_fd()
    }

    /// Bytes it is asked to take at once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.wide_of.is_some() { WIDE_BYTES } else { PIPE_BYTES }
    }

    /// Bytes inside.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Notes that `n` bytes went in.
    pub fn holds(&mut self, n: usize) {
        self.held += n;
    }

    /// Notes that `n` bytes came out.
    pub fn gave(&mut self, n: usize) {
        self.held = self.held.saturating_sub(n);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        let is_wide = self.wide_of.is_some();
        self.wide_of.into_iter().for_each(|agent| self.pool.give_back(agent));
        // INVARIANT: another tunnel must never get bytes of this one.
        if self.held == 0 {
            let (idle, most) =
                if is_wide { (&self.pool.idle_wide, WIDE_MAX) } else { (&self.pool.idle, IDLE_MAX) };
            let mut idle = idle.lock();
            if idle.len() < most {
                idle.push(ends);
                return;
            }
        }
        drop(ends);
        self.pool.close(is_wide);
    }
}
