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
/// Part of the pipes, and of the wide ones, that one agent may have in use, as of connections: readers that take nothing must not
/// leave the others none.
const PART: usize = 4;
/// Wide ones of one agent.
pub const WIDE_SHARE: usize = WIDE_MAX / PART;

type Ends = (OwnedFd, OwnedFd);

/// The pool.
#[derive(Debug)]
pub struct Pipes {
    kept: Mutex<Kept>,
    live: AtomicUsize,
    live_max: usize,
    wide: AtomicUsize,
    /// Whether the system refused a wide one.
    has_no_wide: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    idle: Vec<Ends>,
    idle_wide: Vec<Ends>,
    /// What each agent has in use, by its index; none that has none.
    used: HashMap<u32, Used>,
}

/// How many pipes are in use, and how many of them are wide.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    all: usize,
    wide: usize,
}

/// A pipe in use.
#[derive(Debug)]
pub struct Pipe {
    pool: Arc<Pipes>,
    /// Reader and writer; `None` only while dropping.
    ends: Option<Ends>,
    /// Whose it is.
    agent: u32,
    is_wide: bool,
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
            kept: Mutex::default(),
            live: AtomicUsize::new(0),
            live_max,
            wide: AtomicUsize::new(0),
            has_no_wide: AtomicBool::new(false),
        }
    }

    /// An empty pipe for an agent; `None` if it has its share, there are enough, or the system gives no more.
    #[must_use]
    pub fn take(self: &Arc<Self>, agent: u32) -> Option<Pipe> {
        let idle = {
            let mut kept = self.kept.lock();
            let most = (self.live_max / PART).max(1);
            let used = kept.used.entry(agent).or_default();
            if used.all >= most {
                return None;
            }
            used.all += 1;
            kept.idle.pop()
        };
        self.given(agent, idle.or_else(|| self.open()), false)
    }

    /// An empty pipe for much of an agent's, as far as there are any and it has not its share; else as [`take`](Self::take).
    #[must_use]
    pub fn take_wide(self: &Arc<Self>, agent: u32) -> Option<Pipe> {
        let most = (self.live_max / PART).max(1);
        let idle = {
            let mut kept = self.kept.lock();
            let used = kept.used.entry(agent).or_default();
            let is_free = used.wide < WIDE_SHARE && used.all < most;
            used.all += usize::from(is_free);
            used.wide += usize::from(is_free);
            is_free.then(|| kept.idle_wide.pop())
        };
        let wide = idle.and_then(|idle| self.given(agent, idle.or_else(|| self.widen()), true));
        wide.or_else(|| self.take(agent))
    }

    /// One that is counted, or is counted no more where there is none.
    fn given(self: &Arc<Self>, agent: u32, ends: Option<Ends>, is_wide: bool) -> Option<Pipe> {
        if ends.is_none() {
            self.kept.lock().give_back(agent, is_wide);
        }
        ends.map(|ends| Pipe { pool: Arc::clone(self), ends: Some(ends), agent, is_wide, held: 0 })
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

// === impl Kept ===

impl Kept {
    fn give_back(&mut self, agent: u32, is_wide: bool) {
        let Some(used) = self.used.get_mut(&agent) else { return };
        used.all -= 1;
        used.wide -= usize::from(is_wide);
        if used.all == 0 {
            self.used.remove(&agent);
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
        if self.is_wide { WIDE_BYTES } else { PIPE_BYTES }
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
        let mut kept = self.pool.kept.lock();
        kept.give_back(self.agent, self.is_wide);
        // INVARIANT: another tunnel must never get bytes of this one.
        if self.held == 0 {
            let (idle, most) =
                if self.is_wide { (&mut kept.idle_wide, WIDE_MAX) } else { (&mut kept.idle, IDLE_MAX) };
            if idle.len() < most {
                idle.push(ends);
                return;
            }
        }
        drop(kept);
        drop(ends);
        self.pool.close(self.is_wide);
    }
}
