//! What servers listed of their tools to each agent, as long as there is memory for it.
//!
//! Bounded for each agent and for all together: an agent that lists much forgets its own, and where all have too much, whoever
//! has most forgets first. Must never take what one agent was told for what another was, nor what was forgotten for what was
//! never told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::mem::size_of;
use std::sync::Arc;

use super::catalog::Definition;

/// Most bytes that one agent's lists take: some hundred servers of some tens of tools.
const AGENT_BYTES_MAX: usize = 8 << 20;
/// Most lists of one agent, one for each server.
const AGENT_LISTS_MAX: usize = 256;
/// Most bytes that all take: sixteen agents that list as much as they may, or thousands that list what agents do.
const BYTES_MAX: usize = 128 << 20;
/// Most tools of one list, and bytes that it takes.
const TOOLS_MAX: usize = 1024;
const LIST_BYTES_MAX: usize = 2 << 20;
/// Forgotten lists of one agent that are told apart from those that never were: many times as many as it has. Where one forgets
/// more, any that it does not have may be one.
const FORGOTTEN_MAX: usize = 16 * AGENT_LISTS_MAX;
/// What a list, and a tool of it, take besides what is said of them: their places in maps.
const LIST_BYTES: usize = 256;
const TOOL_BYTES: usize = 64 + size_of::<Definition>();

/// Whose list it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The agent's index.
    pub agent: u32,
    /// Host and port, and the server's name.
    pub at: Arc<str>,
}

/// What is known of a tool.
#[derive(Clone, Debug)]
pub enum Known {
    /// Its server listed this.
    Listed(Definition),
    /// Its server listed none of that name, as far as the agent asked.
    Unlisted,
    /// Its server may have listed it: that was forgotten.
    Forgotten,
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Learned {
    /// By the agent's index: as many as there are agents that ever listed.
    agents: HashMap<u32, Own>,
    bytes: usize,
    /// How often anything was learned or asked for.
    count: u64,
    /// Of this process: nobody can choose a server that stands for another.
    keys: RandomState,
}

/// What is remembered of one agent.
#[derive(Debug, Default)]
struct Own {
    lists: HashMap<Arc<str>, List>,
    bytes: usize,
    /// Hashes of where the lists are of that were forgotten, and whether there are more.
    forgotten: BTreeSet<u64>,
    has_forgotten_more: bool,
}

#[derive(Debug, Default)]
struct List {
    tools: BTreeMap<String, Definition>,
    bytes: usize,
    /// When it was learned or asked for, by the count.
    at: u64,
    /// Whether it may have more than is remembered: there was more than there is room for, or it was forgotten before.
    is_partial: bool,
}

// === impl Learned ===

impl Learned {
    /// What is known of a tool.
    pub fn find(&mut self, key: &Key, name: &str) -> Known {
        self.count += 1;
        let Some(own) = self.agents.get_mut(&key.agent) else { return Known::Unlisted };
        let Some(list) = own.lists.get_mut(&key.at) else {
            let was_listed = own.has_forgotten_more || own.forgotten.contains(&self.keys.hash_one(&key.at));
            return if was_listed { Known::Forgotten } else { Known::Unlisted };
        };
        list.at = self.count;
        match list.tools.get(name) {
            Some(definition) => Known::Listed(definition.clone()),
            None if list.is_partial => Known::Forgotten,
            None => Known::Unlisted,
        }
    }

    /// Remembers a tool that its server lists, and forgets others where that takes too much.
    pub fn learn(&mut self, key: &Key, name: &str, definition: Definition) {
        self.count += 1;
        let own = self.agents.entry(key.agent).or_default();
        let before = own.bytes;
        let is_new = !own.lists.contains_key(&key.at);
        // What else was in it, its server may not say again.
        let was_forgotten =
            is_new && (own.forgotten.remove(&self.keys.hash_one(&key.at)) || own.has_forgotten_more);
        if is_new && own.lists.len() >= AGENT_LISTS_MAX {
            own.forget(&self.keys);
        }
        let list = own.lists.entry(Arc::clone(&key.at)).or_default();
        if is_new {
            list.bytes = LIST_BYTES + key.at.len();
            list.is_partial = was_forgotten;
            own.bytes += list.bytes;
        }
        own.bytes -= list.bytes;
        list.at = self.count;
        list.learn(name, definition);
        own.bytes += list.bytes;
        while own.bytes > AGENT_BYTES_MAX && own.lists.len() > 1 {
            own.forget(&self.keys);
        }
        self.bytes = self.bytes - before + own.bytes;
        while self.bytes > BYTES_MAX {
            let Some(most) = self.agents.values_mut().max_by_key(|own| own.bytes) else { return };
            let before = most.bytes;
            most.forget(&self.keys);
            self.bytes = self.bytes - before + most.bytes;
        }
    }
}

// === impl Own ===

impl Own {
    /// Forgets the list that nobody has asked for longest.
    fn forget(&mut self, keys: &RandomState) {
        let oldest = self.lists.iter().min_by_key(|(_, list)| list.at).map(|(at, _)| Arc::clone(at));
        let Some((at, list)) = oldest.and_then(|at| self.lists.remove_entry(&at)) else { return };
        self.bytes -= list.bytes;
        if self.forgotten.len() < FORGOTTEN_MAX {
            self.forgotten.insert(keys.hash_one(&at));
        } else {
            self.has_forgotten_more = true;
        }
    }
}

// === impl List ===

impl List {
    fn learn(&mut self, name: &str, mut definition: Definition) {
        let bytes = |definition: &Definition| TOOL_BYTES + name.len() + definition.bytes();
        if let Some(old) = self.tools.remove(name) {
            self.bytes -= bytes(&old);
        }
        if self.bytes + bytes(&definition) > LIST_BYTES_MAX {
            // That it is there, and what it is pinned by, is remembered all the same.
            definition.schema = None;
        }
        if self.tools.len() >= TOOLS_MAX || self.bytes + bytes(&definition) > LIST_BYTES_MAX {
            self.is_partial = true;
            return;
        }
        self.bytes += bytes(&definition);
        self.tools.insert(name.to_owned(), definition);
    }
}

#[cfg(test)]
mod tests {
    use clawgress_inspect::tool::Value;

    use super::*;

    fn definition(bytes: usize) -> Definition {
        let tool = format!(r#"{{"name":"t","inputSchema":{{"description":"{}"}}}}"#, "x".repeat(bytes));
        Definition::of(&Value::parse(tool.as_bytes()).expect("JSON"))
    }

    fn key(agent: u32, at: usize) -> Key {
        Key { agent, at: at.to_string().into() }
    }

    fn is_sound(learned: &Learned) {
        let of = |own: &Own| own.lists.values().map(|list| list.bytes).sum::<usize>();
        assert!(learned.agents.values().all(|own| own.bytes == of(own) && own.bytes <= AGENT_BYTES_MAX));
        assert_eq!(learned.bytes, learned.agents.values().map(of).sum::<usize>());
        assert!(learned.bytes <= BYTES_MAX);
    }

    #[test]
    fn an_agent_that_lists_much_forgets_its_own() {
        let mut learned = Learned::default();
        learned.learn(&key(1, 0), "t", definition(100));
        let large = definition(1 << 16);
        for at in 0..AGENT_LISTS_MAX {
            // Of the first it keeps asking.
            assert!(matches!(learned.find(&key(2, 0), "t"), Known::Listed(_)) || at == 0);
            learned.learn(&key(2, at), "t", large.clone());
        }
        is_sound(&learned);
        assert!(matches!(learned.find(&key(2, 0), "t"), Known::Listed(_)));
        assert!(matches!(learned.find(&key(2, 1), "t"), Known::Forgotten));
        assert!(matches!(learned.find(&key(2, AGENT_LISTS_MAX - 1), "t"), Known::Listed(_)));
        // Others keep theirs, and of them nothing was forgotten.
        assert!(matches!(learned.find(&key(1, 0), "t"), Known::Listed(_)));
        assert!(matches!(learned.find(&key(1, 1), "t"), Known::Unlisted));
        assert!(matches!(learned.find(&key(3, 0), "t"), Known::Unlisted));
        let mut learned = Learned::default();
        for at in 0..=AGENT_LISTS_MAX {
            learned.learn(&key(1, at), "t", definition(1));
        }
        is_sound(&learned);
        assert!(matches!(learned.find(&key(1, 0), "t"), Known::Forgotten), "there are too many");
    }

    #[test]
    fn a_list_that_is_seen_again_is_forgotten_no_more() {
        let mut learned = Learned::default();
        for at in 0..=AGENT_LISTS_MAX {
            learned.learn(&key(1, at), "t", definition(1));
        }
        assert!(matches!(learned.find(&key(1, AGENT_LISTS_MAX + 1), "t"), Known::Unlisted), "it never was");
        assert!(matches!(learned.find(&key(1, 0), "t"), Known::Forgotten));
        learned.learn(&key(1, 0), "t", definition(1));
        assert!(matches!(learned.find(&key(1, 0), "t"), Known::Listed(_)));
        // Its other pages were forgotten as well.
        assert!(matches!(learned.find(&key(1, 0), "other"), Known::Forgotten));
        // Of very many nobody knows which.
        for at in 0..AGENT_LISTS_MAX + FORGOTTEN_MAX {
            learned.learn(&key(1, at), "t", definition(1));
        }
        is_sound(&learned);
        assert!(learned.agents[&1].forgotten.len() <= FORGOTTEN_MAX);
        let never = AGENT_LISTS_MAX + FORGOTTEN_MAX;
        assert!(matches!(learned.find(&key(1, never), "t"), Known::Unlisted));
        learned.learn(&key(1, never), "t", definition(1));
        assert!(matches!(learned.find(&key(1, never + 1), "t"), Known::Forgotten));
    }

    #[test]
    fn where_all_have_too_much_whoever_has_most_forgets() {
        let mut learned = Learned::default();
        learned.learn(&key(0, 0), "t", definition(100));
        let agents = u32::try_from(BYTES_MAX / AGENT_BYTES_MAX + 4).expect("a number");
        let large = definition(1 << 20);
        for agent in 1..=agents {
            for at in 0..7 {
                learned.learn(&key(agent, at), "t", large.clone());
            }
        }
        is_sound(&learned);
        assert!(matches!(learned.find(&key(0, 0), "t"), Known::Listed(_)));
        let of = |agent: u32| learned.agents[&agent].lists.len();
        assert!((1..=agents).all(|agent| of(agent) >= 5), "{:?}", (1..=agents).map(of).collect::<Vec<_>>());
    }

    #[test]
    fn of_a_list_so_much_is_remembered() {
        let mut learned = Learned::default();
        for n in 0..TOOLS_MAX {
            learned.learn(&key(1, 0), &format!("t{n}"), definition(10));
        }
        assert!(matches!(learned.find(&key(1, 0), "other"), Known::Unlisted));
        learned.learn(&key(1, 0), "more", definition(10));
        assert!(matches!(learned.find(&key(1, 0), "more"), Known::Forgotten));
        assert!(matches!(learned.find(&key(1, 0), "t7"), Known::Listed(_)));
        // Again, and of other sizes.
        learned.learn(&key(1, 0), "t7", definition(100));
        is_sound(&learned);
        let mut learned = Learned::default();
        for n in 0..3 {
            learned.learn(&key(1, 0), &format!("t{n}"), definition(1 << 20));
        }
        is_sound(&learned);
        let has = |known| matches!(known, Known::Listed(Definition { schema: Some(_), .. }));
        assert!(has(learned.find(&key(1, 0), "t0")) && !has(learned.find(&key(1, 0), "t2")));
        assert!(matches!(learned.find(&key(1, 0), "t2"), Known::Listed(_)), "its pin is remembered");
    }
}
