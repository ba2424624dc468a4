"""Read a bag, whole or damaged: topics, what is lost. Run it in `./vla shell`: python examples/read_bag.py BAG"""

import sys
from collections import Counter
from pathlib import Path

from vla_training.bag import Damage, bag_files, messages, topics_seen

bag, damage = Path(sys.argv[1]), Damage()
topics = topics_seen(bag, enough=lambda found: False)  # until the bag ends
counts = Counter(message.topic for message in messages(bag, topics, damage, progress=lambda read: None))
print(f'{bag}: {len(bag_files(bag))} file(s)')
for topic, count in sorted(counts.items()):
    print(f'{count:8d}  {topics[topic]:40s}  {topic}')
print('not read:', '; '.join(damage.problems) or 'nothing')
