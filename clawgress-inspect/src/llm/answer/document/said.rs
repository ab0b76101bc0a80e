//! What a model says in answers beside one another (`n`, `candidateCount`): each apart, whose parts come in any order. Must never have
//! the words of one stand between those of another.

/// Most answers that are told apart: those from the last on are one. Providers make up to eight, or many for a price of many.
const CHOICES_MAX: usize = 8;

/// What was said in each, and what tools are asked for.
#[derive(Debug, Default)]
pub(super) struct Said {
    first: [Vec<u8>; 2],
    /// Those behind the first.
    more: Vec<[Vec<u8>; 2]>,
}

/// Which answer is at hand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// How deep it is; 0 outside of all.
    depth: usize,
    number: usize,
    /// How many there were in the list at hand.
    count: usize,
    /// How much had been said in its place when it began.
    before: [usize; 2],
    /// Whether it said which it is: the first word of it counts, or what was said would be moved for each.
    has_told: bool,
}

// === impl Said ===

impl Said {
    fn of(&mut self, number: usize) -> &mut [Vec<u8>; 2] {
        let Some(at) = number.min(CHOICES_MAX - 1).checked_sub(1) else { return &mut self.first };
        if self.more.len() <= at {
            self.more.resize_with(at + 1, Default::default);
        }
        match self.more.get_mut(at) {
            Some(said) => said,
            None => &mut self.first,
        }
    }

    fn lengths(&self, number: usize) -> [usize; 2] {
        let said =
            number.min(CHOICES_MAX - 1).checked_sub(1).map_or(Some(&self.first), |at| self.more.get(at));
        said.map_or([0; 2], |said| said.each_ref().map(Vec::len))
    }

    /// Some of what is said, or asked for.
    pub(super) fn push(&mut self, number: usize, what: usize, bytes: &[u8]) {
        if let Some(said) = self.of(number).get_mut(what) {
            said.extend_from_slice(bytes);
        }
    }

    pub(super) fn take(&mut self) -> [Vec<u8>; 2] {
        std::mem::take(&mut self.first)
    }

    pub(super) fn take_more(&mut self) -> Vec<(usize, [Vec<u8>; 2])> {
        let all = self.more.iter_mut().enumerate().map(|(at, said)| (at + 1, std::mem::take(said)));
        all.filter(|(_, said)| said.iter().any(|text| !text.is_empty())).collect()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        std::iter::once(&self.first).chain(&self.more).flatten().map(Vec::capacity).sum()
    }
}

// === impl Choice ===

impl Choice {
    /// One begins, so deep: until it says otherwise, by its place in the list.
    pub(super) fn begin(&mut self, depth: usize, said: Option<&Said>) {
        (self.depth, self.number, self.has_told) = (depth, self.count, false);
        self.count += 1;
        self.before = said.map_or([0; 2], |said| said.lengths(self.number));
    }

    /// What was so deep has ended; and whether that is their list.
    pub(super) fn end(&mut self, depth: usize, is_list: bool) {
        if self.depth == depth {
            (self.depth, self.number) = (0, 0);
        }
        if is_list {
            self.count = 0;
        }
    }

    /// What is so deep says which it is: what it said before it said so is of that.
    pub(super) fn is(&mut self, depth: usize, number: Option<u64>, said: Option<&mut Said>) {
        let Some(number) = number.filter(|_| self.depth == depth && !self.has_told) else { return };
        self.has_told = true;
        let number = usize::try_from(number).unwrap_or(usize::MAX).min(CHOICES_MAX - 1);
        let former = std::mem::replace(&mut self.number, number);
        let Some(said) = said.filter(|_| former != number) else { return };
        let before = self.before;
        let moved: Vec<Vec<u8>> = said
            .of(former)
            .iter_mut()
            .zip(before)
            .map(|(text, before)| text.split_off(before.min(text.len())))
            .collect();
        moved.iter().enumerate().for_each(|(what, text)| said.push(number, what, text));
    }

    pub(super) fn number(self) -> usize {
        self.number
    }
}
