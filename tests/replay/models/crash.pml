/* The crash protocol of the shared log: producers claim segments by tickets, die anywhere, and
 * are replaced; a slot of the dead is taken over after their segments were sealed.
 *
 * Checked: two living producers never own one segment at once; nobody writes into a segment that
 * was sealed or claimed under him; what a reader accepts is whole and of one ticket; nobody waits.
 * Each step of Promela is one atomic operation of the C++ (names as in replay_log_impl.hpp).
 * -DMUTANT=1: a slot is taken without sealing. 2: the owner is not looked at again before a seal.
 * 3: the reader does not look at the ticket again. 4: a claim does not compare.
 */
#ifndef MUTANT
#define MUTANT 0
#endif
#ifndef LIVES
#define LIVES 3 /* processes in all */
#endif
#define SEGMENTS 1
#define SLOTS 2
#define WORDS 2
#ifndef TICKETS
#define TICKETS 4 /* the first that is not given out */
#endif

byte owner[SLOTS];        /* 0 free, else process number + 1 */
bool dead[LIVES];
byte ticket_of[SEGMENTS]; /* the control word: these three change at once */
byte slot_of[SEGMENTS];
bool open[SEGMENTS];
byte fill_ticket[SEGMENTS];
byte fill[SEGMENTS];
byte word[SEGMENTS * WORDS]; /* the ticket that wrote it */
byte writer[SEGMENTS];       /* ghost: living process + 1 that owns the segment */
byte next_ticket = 1;

#define DIE if :: true -> skip :: me > 0 -> atomic { dead[me] = true; release_ghosts(); goto gone } fi
inline release_ghosts() {
  g = 0;
  do :: g < SEGMENTS -> if :: writer[g] == me + 1 -> writer[g] = 0 :: else fi; g++
     :: else -> break od; g = 0
}

proctype Producer(byte me) {
  byte slot = 0, s, t, seen_ticket, seen_slot, who, w, g;
  bool seen_open, mine;

  /* slot() */
  do
  :: slot < SLOTS ->
     who = owner[slot];
     if
     :: who != 0 && !dead[who - 1] -> slot++
     :: else ->
        if
        :: who != 0 && MUTANT != 1 ->  /* seal_all_of */
           s = 0;
           do
           :: s < SEGMENTS ->
              d_step { seen_ticket = ticket_of[s]; seen_slot = slot_of[s]; seen_open = open[s] }
              if
              :: seen_open && seen_slot == slot ->
                 if
                 :: MUTANT == 2 || owner[slot] == who ->
                    DIE;
                    d_step {
                      if :: MUTANT == 2 && seen_open -> open[s] = false
                         :: MUTANT != 2 && ticket_of[s] == seen_ticket && open[s] && slot_of[s] == seen_slot -> open[s] = false
                         :: else fi
                    }
                 :: else -> break
                 fi
              :: else
              fi;
              s++
           :: else -> break
           od
        :: else
        fi;
        atomic {
          if :: owner[slot] == who ->
                assert(!open[0] || slot_of[0] != slot);  /* it would be lost while I live */
                owner[slot] = me + 1; mine = true
             :: else -> mine = false fi
        }
        if :: mine -> break :: else -> slot++ fi
     fi
  :: else -> goto gone  /* refused: too many living producers */
  od;
  DIE;

  /* open_segment() */
  do
  :: next_ticket < TICKETS ->
     d_step { t = next_ticket; next_ticket++ }
     s = t % SEGMENTS;
     DIE;
     d_step { seen_ticket = ticket_of[s]; seen_slot = slot_of[s]; seen_open = open[s] }
     if
     :: seen_open ->  /* seal_if_dead */
        who = owner[seen_slot];
        if
        :: who == 0 || dead[who - 1] ->
           d_step {
             if :: ticket_of[s] == seen_ticket && slot_of[s] == seen_slot && open[s] -> open[s] = false; mine = true
                :: else -> mine = false fi
           }
        :: else -> mine = false
        fi
     :: else -> mine = true
     fi;
     if
     :: mine && seen_ticket < t ->
        DIE;
        atomic {
          if
          :: MUTANT == 4 || (ticket_of[s] == seen_ticket && slot_of[s] == seen_slot && !open[s]) ->
             assert(writer[s] == 0);
             ticket_of[s] = t; slot_of[s] = slot; open[s] = true; writer[s] = me + 1
          :: else -> mine = false
          fi
        }
        if
        :: mine ->
           DIE;
           d_step { fill_ticket[s] = t; fill[s] = 0 }
           w = 0;
           do
           :: w < WORDS ->
              DIE;
              d_step { assert(open[s] && ticket_of[s] == t); word[s * WORDS + w] = t; }
              DIE;
              d_step { fill_ticket[s] = t; fill[s] = w + 1; }
              w++
           :: else -> break
           od;
           DIE;
           atomic { assert(open[s] && ticket_of[s] == t); open[s] = false; writer[s] = 0 }
        :: else
        fi
     :: else
     fi
  :: else -> break
  od;
gone:
  skip
}

proctype Reader() {
  byte s, t, n, w;
  bool torn;
  do
  :: s < SEGMENTS ->
     d_step { t = fill_ticket[s]; n = fill[s] }
     w = 0; torn = false;
     do
     :: w < n -> if :: word[s * WORDS + w] != t -> torn = true :: else fi; w++
     :: else -> break
     od;
     if
     :: MUTANT == 3 || ticket_of[s] == t -> assert(!torn)
     :: else
     fi;
     s++
  :: else -> break
  od
}

init {
  byte i;
  atomic {
    run Reader();
    do :: i < LIVES -> run Producer(i); i++ :: else -> break od
  }
}
