import sys; sys.path.insert(0,'tests')
import os, tempfile
from pathlib import Path
from pmwatch.intake.folder import FolderIntake
from pmwatch.ledger import Ledger
from support.folders import make_folder
class FW:
    alive=True
    def close(self): pass
class W:
    def watch(self,*a,**k): return FW()
class O:
    missed=0
    def folder_changed(self,*a): pass
    def settled(self,f,c): pass
    def scanned(self,f,s,*,files,missed): self.missed+=missed
    def never_settles(self,*a): pass
d=Path(tempfile.mkdtemp()); (d/'drop').mkdir(); (d/'s').mkdir()
led=Ledger.open(str(d/'s'))
now=[0.0]; o=O()
mode=sys.argv[1]
it=FolderIntake(make_folder(d/'drop',settle_seconds=1.0),watcher=W(),ledger=led,observer=o,monotonic=lambda:now[0],wall=lambda:now[0])
for i in range(600):
    now[0]+=0.1
    if mode=='new' or i<1:
        (d/'drop'/f'{i}.csv').write_text(f'x{i}')
    it.inbox.rescan()
    it.turn(longest_wait=0)
    if i%100==99: print(f"t={now[0]:.0f}s files={len(os.listdir(d/'drop'))} entered={sum(led.counts().values())} ready={len(it._ready)} missed={o.missed}")
